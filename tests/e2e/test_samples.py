"""Layouts of the samples on a real node: ranks in pods that find each other over the cluster's network."""

import copy

import pytest

from tests.e2e.corpus import corpus_claim
from tests.e2e.namespace import Body, Namespace, eventually
from tests.e2e.node_faults import NodeFaults
from tests.support.corpus import write_corpus
from tests.support.samples import OF_CLAIMS, TRAINED, sample

pytestmark = pytest.mark.e2e

STEPS = 5
PARAMETER_SERVER, TWO_AXES, PRIVATE = "mlp-parameter-server", "llama-tp-pp", "mlp-private"
SERVED = "llama-chat-lora"
"""The sample of test_serving.py."""
OTHERS = (PARAMETER_SERVER, TWO_AXES, PRIVATE, "llama-ddp", "llama-checkpoint")
REPRESENTED = [name for name in TRAINED if name not in OTHERS]
"""Samples whose layouts tests/trainer proves and tests/local runs; test_training.py trains llama-ddp on the node."""


def one_process(body: Body) -> Body:
    """Return the same job as one pod with one process, without any parallelism."""
    alone = copy.deepcopy(body)
    alone["metadata"]["name"] += "-alone"
    spec = alone["spec"]
    spec.pop("parallelism", None)
    spec.pop("parameterServer", None)
    spec["workers"] |= {"replicas": 1, "procsPerWorker": 1}
    spec["workers"]["resources"]["requests"] = {"cpu": "250m", "memory": "1Gi"}
    return alone


def train(namespace: Namespace, body: Body) -> None:
    """Train a job on the node: its last loss is that of one process on the same data.

    The data of text samples are the Python sources of the image, so a run outside of it has other losses.
    """
    jobs = (body, one_process(body))
    namespace.apply(*jobs)
    statuses = [namespace.await_phase(job["metadata"]["name"], "Succeeded", timeout=180) for job in jobs]
    losses = [status["progress"]["loss"] for status in statuses]
    assert [(status["progress"]["step"], status["restarts"]) for status in statuses] == [(STEPS, 0)] * 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_parameter_server_trains_on_the_node(namespace: Namespace) -> None:
    train(namespace, sample(PARAMETER_SERVER, steps=STEPS))


def test_matrices_and_layers_split_over_four_pods_train_on_the_node(namespace: Namespace) -> None:
    """Both axes cross the pods' network; a smaller share of the processor lets all four pods onto the node."""
    body = sample(TWO_AXES, steps=STEPS)
    workers = body["spec"]["workers"]
    workers |= {"replicas": 4, "procsPerWorker": 1}
    workers["resources"]["requests"] = {"cpu": "250m", "memory": "1Gi"}
    train(namespace, body)


def test_a_private_run_reports_what_it_has_spent(namespace: Namespace) -> None:
    """Two private runs draw other samples, so its losses are compared with nothing here."""
    body = sample(PRIVATE, steps=STEPS)
    body["spec"]["checkpoint"] = {"volume": {"emptyDir": {}}}
    namespace.apply(body)
    progress = namespace.await_phase(PRIVATE, "Succeeded", timeout=180)["progress"]
    assert progress["step"] == STEPS
    assert 2.9 < progress["epsilon"] <= body["spec"]["trainer"]["privacy"]["epsilon"]


# Extended: the tests above train such samples on the node; tests/trainer compares the losses of these layouts with
# those of one process, and tests/local runs them.
@pytest.mark.extended
@pytest.mark.parametrize("name", [TWO_AXES, *REPRESENTED])
def test_sample_trains_on_the_node(namespace: Namespace, name: str) -> None:
    train(namespace, sample(name, steps=STEPS))


# Extended: test_serving.py trains the sample with weights on a claim; tests/local runs these two.
@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in OF_CLAIMS if name != SERVED])
def test_sample_with_data_of_a_claim_trains_on_the_node(
    namespace: Namespace, node_faults: NodeFaults, name: str
) -> None:
    with corpus_claim(namespace, node_faults, write_corpus):
        namespace.apply(sample(name, steps=STEPS))
        status = namespace.await_phase(name, "Succeeded", timeout=180)
    assert (status["progress"]["step"], status["restarts"]) == (STEPS, 0)


# Extended: tests/trainer/test_layouts.py proves what compiled blocks compute.
@pytest.mark.extended
def test_compiled_blocks_in_bfloat16_train_on_the_node(namespace: Namespace) -> None:
    """The image contains the compiler, and a folder that its user can write compiled code to."""
    body = sample("llama-fsdp", steps=STEPS)
    body["spec"]["trainer"] |= {"compile": True, "precision": "bfloat16"}
    namespace.apply(body)
    status = namespace.await_phase("llama-fsdp", "Succeeded", timeout=300)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7


def test_a_job_goes_on_where_a_deleted_one_of_its_name_has_left_off(
    namespace: Namespace, node_faults: NodeFaults
) -> None:
    """The claim of the sample is retained; the volume behind it is a folder of the node."""
    name = "llama-checkpoint"
    volume = node_faults.volume(namespace, name)
    volume.offer(namespace, name)
    try:
        namespace.apply(sample(name, steps=STEPS))
        status = namespace.await_phase(name, "Succeeded", timeout=180)
        assert status["progress"]["checkpointStep"] == STEPS
        namespace.kubectl("delete", "tj", name)
        eventually("the pods gone with the job", lambda: not namespace.objects("pods"))
        assert namespace.get("pvc", name)["status"]["phase"] == "Bound"
        namespace.apply(sample(name, steps=STEPS + 3))
        progress = namespace.await_phase(name, "Succeeded", timeout=180)["progress"]
        assert (progress["resumedStep"], progress["step"], progress["checkpointStep"]) == (STEPS, STEPS + 3, STEPS + 3)
        assert ("CheckpointLoaded", f"attempt 1: continuing after step {STEPS}") in namespace.events(name)
    finally:
        volume.withdraw(namespace, wait=False)
        volume.remove()
