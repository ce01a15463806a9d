"""spec.scheduling in the pods and the group objects of a job: gang schedulers, queues, priorities, topology domains."""

from typing import Any

import pytest

from tests.builders import TRAINER_IMAGE, elastic, make_job, served, trainer_spec
from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.gangs import GANG_SCHEDULERS, build_group, unavailable
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod

TOPOLOGY = "topology.kubernetes.io/rack"
KUEUE = "kueue.x-k8s.io"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def scheduled(
    gang: str = "none", *, replicas: int = 2, job: dict[str, Any] | None = None, **fields: Any
) -> TrainingJob:
    """A job with `fields` of spec.scheduling, and the fields `job` of the spec."""
    return make_job(replicas=replicas, scheduling={"gang": gang, **fields}, **(job or {}))


def pod_of(job: TrainingJob, index: int = 1, *, attempt: int = 2, alone: bool = False) -> dict[str, Any]:
    return build_pod(job, attempt, index, trainer_image=TRAINER_IMAGE, alone=alone)


def sharded(procs: int, **axes: Any) -> dict[str, Any]:
    """Fields of a spec whose ranks divide the matrices."""
    workers = {"procsPerWorker": procs}
    parallelism = {"data": {"mode": "fsdp"}, **axes}
    return {"workers": workers, "parallelism": parallelism, "trainer": trainer_spec(batch={"global": 64})}


# --- gangs ----------------------------------------------------------------------------------------------------


def test_without_the_field_pods_are_what_they_were() -> None:
    for job in (make_job(), scheduled()):
        assert build_group(job, 1) is None
        pod = pod_of(job)
        assert not {"schedulingGroup", "schedulerName", "schedulingGates", "priorityClassName"} & pod["spec"].keys()
        assert "annotations" not in pod["metadata"]
        assert {label.partition("/")[0] for label in pod["metadata"]["labels"]} == {
            "trainyard.dev",
            "app.kubernetes.io",
        }


@pytest.mark.parametrize(
    ("gang", "api_version", "spec"),
    [
        (
            "native",
            "scheduling.k8s.io/v1beta1",
            {
                "schedulingPolicy": {"gang": {"minCount": 2}},
                "disruptionMode": {"all": {}},
                "priorityClassName": "high",
            },
        ),
        ("coscheduling", "scheduling.x-k8s.io/v1alpha1", {"minMember": 2}),
        (
            "volcano",
            "scheduling.volcano.sh/v1beta1",
            {"minMember": 2, "queue": "research", "priorityClassName": "high"},
        ),
    ],
)
def test_each_attempt_has_a_group_of_all_of_its_pods(gang: str, api_version: str, spec: dict[str, Any]) -> None:
    queue: dict[str, Any] = {"queue": "research"} if gang == "volcano" else {}
    group = build_group(scheduled(gang, priorityClassName="high", **queue), 3)
    assert group is not None
    assert (group["apiVersion"], group["kind"], group["spec"]) == (api_version, "PodGroup", spec)
    assert group["metadata"]["name"] == "job-3"
    assert group["metadata"]["labels"][constants.LABEL_ATTEMPT] == "3"
    [owner] = group["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"]) == ("TrainingJob", True)


def test_a_parameter_server_belongs_to_the_group() -> None:
    group = build_group(scheduled("coscheduling", job=served()), 1)
    assert group is not None
    assert group["spec"] == {"minMember": 3}
    assert pod_of(scheduled("native", job=served()), 2)["spec"]["schedulingGroup"] == {"podGroupName": "job-2"}


def test_pods_refer_to_the_group_of_their_attempt() -> None:
    native = pod_of(scheduled("native"))
    assert native["spec"]["schedulingGroup"] == {"podGroupName": "job-2"}
    assert "schedulerName" not in native["spec"]
    coscheduling = pod_of(scheduled("coscheduling"))
    assert coscheduling["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == "job-2"
    assert coscheduling["spec"]["schedulerName"] == "scheduler-plugins-scheduler"
    volcano = pod_of(scheduled("volcano", queue="research"))
    assert volcano["metadata"]["annotations"] == {"scheduling.k8s.io/group-name": "job-2"}
    assert volcano["spec"]["schedulerName"] == "volcano"
    assert not [label for label in volcano["metadata"]["labels"] if label.startswith(KUEUE)], "its own queue"


def test_the_template_may_name_another_scheduler_and_a_priority() -> None:
    template = {"template": {"spec": {"schedulerName": "mine", "priorityClassName": "low"}}}
    job = scheduled("coscheduling", job={"workers": template})
    assert pod_of(job)["spec"]["schedulerName"] == "mine"
    assert pod_of(job)["spec"]["priorityClassName"] == "low"
    native = build_group(scheduled("native", job={"workers": template}), 1)
    assert native is not None
    assert native["spec"]["priorityClassName"] == "low", "a group without a class would have another priority"
    explicit = scheduled("native", job={"workers": template}, priorityClassName="high")
    group = build_group(explicit, 1)
    assert group is not None
    assert pod_of(explicit)["spec"]["priorityClassName"] == group["spec"]["priorityClassName"] == "high"


@pytest.mark.parametrize("gang", GANG_SCHEDULERS)
def test_a_pod_that_is_scheduled_by_itself_belongs_to_no_group(gang: str) -> None:
    """The pods of the dry run, and placeholders: with them a group would have too many members."""
    job = scheduled(gang, topologyKey=TOPOLOGY, priorityClassName="high", job=elastic())
    alone = build_placeholder(job, 2, 0, trainer_image=TRAINER_IMAGE)
    for pod in (alone, pod_of(job, alone=True)):
        assert "schedulingGroup" not in pod["spec"]
        assert "affinity" not in pod["spec"]
        assert pod["spec"]["priorityClassName"] == "high"
        assert not [label for label in pod["metadata"]["labels"] if "pod-group" in label or "domain" in label]
        assert "scheduling.k8s.io/group-name" not in pod["metadata"].get("annotations", {})
        assert pod["spec"].get("schedulerName") == pod_of(job)["spec"].get("schedulerName"), "the same scheduler"


@pytest.mark.parametrize("gang", GANG_SCHEDULERS)
def test_what_is_missing_is_said_with_the_fix(gang: str) -> None:
    message = unavailable(gang, "the API server refuses PodGroup job-1: not found")
    assert message.startswith("spec.scheduling.gang: the API server refuses PodGroup job-1: not found; ")
    assert f"{gang} needs " in message
    assert f"podgroups of {GANG_SCHEDULERS[gang].api_version}" in message


# --- queues ---------------------------------------------------------------------------------------------------


def test_pods_in_a_queue_are_a_group_that_is_never_partly_replaced() -> None:
    pod = pod_of(scheduled(queue="research", replicas=3))
    labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
    assert {name: value for name, value in labels.items() if name.startswith(KUEUE)} == {
        f"{KUEUE}/queue-name": "research",
        f"{KUEUE}/pod-group-name": "job-2",
    }
    assert annotations == {f"{KUEUE}/pod-group-total-count": "3", f"{KUEUE}/retriable-in-group": "false"}
    assert pod["spec"]["schedulingGates"] == [{"name": f"{KUEUE}/admission"}]


def test_gates_of_the_template_stay() -> None:
    gates = [{"name": "example.com/mine"}, {"name": f"{KUEUE}/admission"}]
    job = scheduled(queue="q", job={"workers": {"template": {"spec": {"schedulingGates": gates}}}})
    assert pod_of(job)["spec"]["schedulingGates"] == gates


@pytest.mark.parametrize("gang", ["native", "coscheduling"])
def test_a_group_in_a_queue_may_have_a_gang_scheduler(gang: str) -> None:
    job = scheduled(gang, queue="research")
    assert pod_of(job)["metadata"]["labels"][f"{KUEUE}/pod-group-name"] == "job-2"
    assert build_group(job, 2) is not None


def test_a_queue_gets_the_topology_as_a_request() -> None:
    job = scheduled(queue="q", topologyKey=TOPOLOGY, replicas=4, job=sharded(2, tensor=4))
    pod = pod_of(job)
    request = {name: value for name, value in pod["metadata"]["annotations"].items() if "topology" in name}
    assert request == {
        f"{KUEUE}/podset-preferred-topology": TOPOLOGY,
        f"{KUEUE}/podset-slice-required-topology": TOPOLOGY,
    }
    assert pod["metadata"]["annotations"][f"{KUEUE}/podset-slice-size"] == "2"
    assert pod["metadata"]["annotations"][f"{KUEUE}/pod-group-pod-index-label"] == constants.LABEL_INDEX
    assert "affinity" not in pod["spec"], "a queue that assigns nodes ignores affinity among pods"
    shapes = [pod_of(job, index)["spec"].get("nodeSelector") for index in range(4)]
    assert shapes == [None] * 4, "all workers have one role: Kueue allows eight in a group"


# --- topology -------------------------------------------------------------------------------------------------


def preferences(job: TrainingJob, index: int) -> list[tuple[int, list[str] | None]]:
    """Return the weights and the domains that a pod wants to be near; None: any of the group."""
    affinity = pod_of(job, index)["spec"]["affinity"]["podAffinity"]

    def domains(term: dict[str, Any]) -> list[str] | None:
        assert term["topologyKey"] == TOPOLOGY
        assert term["labelSelector"]["matchLabels"] == {constants.LABEL_JOB: "job", constants.LABEL_ATTEMPT: "2"}
        expressions = term["labelSelector"].get("matchExpressions")
        return expressions[0]["values"] if expressions else None

    assert affinity.keys() == {PREFERRED}, "a requirement could make the group unschedulable for ever"
    return [(entry["weight"], domains(entry["podAffinityTerm"])) for entry in affinity[PREFERRED]]


def test_workers_of_one_tensor_group_are_near_each_other_first() -> None:
    job = scheduled(topologyKey=TOPOLOGY, replicas=4, job=sharded(2, tensor=4))
    assert [pod_of(job, i)["metadata"]["labels"][constants.LABEL_DOMAIN] for i in range(4)] == ["0", "0", "1", "1"]
    assert [preferences(job, i) for i in (0, 3)] == [[(100, ["0"]), (10, None)], [(100, ["1"]), (10, None)]]


def test_neighbouring_pipeline_stages_are_near_each_other() -> None:
    job = scheduled(topologyKey=TOPOLOGY, replicas=4, job=sharded(1, pipeline={"stages": 4}))
    assert [preferences(job, i) for i in range(4)] == [
        [(50, ["1"]), (10, None)],
        [(50, ["0", "2"]), (10, None)],
        [(50, ["1", "3"]), (10, None)],
        [(50, ["2"]), (10, None)],
    ]


@pytest.mark.parametrize("spec", [{}, sharded(4, tensor=4), served()], ids=["own program", "one worker", "server"])
def test_other_workers_are_near_each_other_if_possible(spec: dict[str, Any]) -> None:
    job = scheduled(topologyKey=TOPOLOGY, job=spec)
    for index in range(job.spec.pods):
        assert preferences(job, index) == [(10, None)]


def test_the_templates_affinity_and_avoided_nodes_stay() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "cache"}}, "topologyKey": "zone"}
    given = {"podAffinity": {REQUIRED: [term]}, "podAntiAffinity": {REQUIRED: [term]}}
    job = scheduled(
        topologyKey=TOPOLOGY,
        job={"workers": {"template": {"spec": {"affinity": given}}}, "status": {"slowNodes": ["n1"], "attempt": 1}},
    )
    affinity = pod_of(job)["spec"]["affinity"]
    assert affinity["podAffinity"][REQUIRED] == [term]
    assert len(affinity["podAffinity"][PREFERRED]) == 1
    assert affinity["podAntiAffinity"] == given["podAntiAffinity"]
    assert affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"][0]["matchFields"][0]["values"] == ["n1"]
