"""Every layout of the samples on the real node: ranks in pods that find each other over the cluster's network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.node import Hands
from tests.e2e.world import Body, World, eventually
from tests.support.samples import TRAINED, sample

pytestmark = pytest.mark.e2e

STEPS = 5
PARAMETER_SERVER, TWO_AXES = "mlp-parameter-server", "gpt-tp-pp"
REPRESENTED = [name for name in TRAINED if name not in (PARAMETER_SERVER, TWO_AXES, "gpt-ddp", "gpt-checkpoint")]
"""Samples whose layouts tests/trainer proves and tests/local runs; test_training.py trains gpt-ddp on the node."""


def local_loss(body: Body, folder: Path) -> float:
    """Train a job on this machine, without the cluster, and return its last loss."""
    argv = [sys.executable, "-m", "trainyard_cli.main", "run", "-", "-o", "json", "--folder", str(folder)]
    done = subprocess.run(argv, input=yaml.safe_dump(body), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["status"]["progress"]["loss"])


def train(world: World, body: Body, folder: Path) -> None:
    """Train a job on the node: its last loss is the one that the same job has on this machine."""
    name = body["metadata"]["name"]
    world.apply(body)
    status = world.await_phase(name, "Succeeded", timeout=180)
    assert (status["progress"]["step"], status["restarts"]) == (STEPS, 0)
    assert status["progress"]["loss"] == pytest.approx(local_loss(body, folder), rel=1e-4)


def test_a_parameter_server_trains_on_the_node(world: World, tmp_path: Path) -> None:
    train(world, sample(PARAMETER_SERVER, steps=STEPS), tmp_path)


def test_matrices_and_layers_split_over_four_pods_train_on_the_node(world: World, tmp_path: Path) -> None:
    """Both axes cross the pods' network; a smaller share of the processor lets all four pods onto the node."""
    body = sample(TWO_AXES, steps=STEPS)
    workers = body["spec"]["workers"]
    workers |= {"replicas": 4, "procsPerWorker": 1}
    workers["resources"]["requests"] = {"cpu": "250m", "memory": "1Gi"}
    train(world, body, tmp_path)


# Extended: the two tests above train such samples on the node; tests/trainer compares the losses of these layouts with
# those of one process, and tests/local runs them.
@pytest.mark.extended
@pytest.mark.parametrize("name", [TWO_AXES, *REPRESENTED])
def test_sample_trains_on_the_node(world: World, tmp_path: Path, name: str) -> None:
    train(world, sample(name, steps=STEPS), tmp_path)


# Extended: tests/trainer/test_layouts.py proves what compiled blocks compute.
@pytest.mark.extended
def test_compiled_blocks_in_bfloat16_train_on_the_node(world: World) -> None:
    """The image holds the compiler, and its user, who has no name, a place for what it makes."""
    body = sample("gpt-fsdp", steps=STEPS)
    body["spec"]["trainer"] |= {"compile": True, "precision": "bfloat16"}
    world.apply(body)
    status = world.await_phase("gpt-fsdp", "Succeeded", timeout=300)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7


def test_a_job_goes_on_where_a_deleted_one_of_its_name_has_left_off(world: World, hands: Hands) -> None:
    """The claim of the sample is retained; the volume behind it is a folder of the node."""
    name = "gpt-checkpoint"
    volume = hands.volume(world, name)
    volume.offer(world, name)
    try:
        world.apply(sample(name, steps=STEPS))
        status = world.await_phase(name, "Succeeded", timeout=180)
        assert status["progress"]["checkpointStep"] == STEPS
        world.kubectl("delete", "tj", name)
        eventually("the pods gone with the job", lambda: not world.objects("pods"))
        assert world.get("pvc", name)["status"]["phase"] == "Bound"
        world.apply(sample(name, steps=STEPS + 3))
        progress = world.await_phase(name, "Succeeded", timeout=180)["progress"]
        assert (progress["resumedStep"], progress["step"], progress["checkpointStep"]) == (STEPS, STEPS + 3, STEPS + 3)
        assert ("CheckpointLoaded", f"attempt 1: continuing after step {STEPS}") in world.events(name)
    finally:
        volume.withdraw(world, wait=False)
        volume.remove()
