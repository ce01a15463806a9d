"""Every layout of the samples on the real node: ranks in pods that find each other over the cluster's network."""

import pytest

from tests.e2e.node import Hands
from tests.e2e.world import World, eventually
from tests.support.samples import TRAINED, sample

pytestmark = pytest.mark.e2e

STEPS = 5


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("llama-ddp", "llama-checkpoint")])
def test_sample_trains_on_the_node(world: World, name: str) -> None:
    world.apply(sample(name, steps=STEPS))
    status = world.await_phase(name, "Succeeded", timeout=180)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7
    assert status["restarts"] == 0


def test_compiled_blocks_in_bfloat16_train_on_the_node(world: World) -> None:
    """The image holds the compiler, and its user, who has no name, a place for what it makes."""
    body = sample("llama-fsdp", steps=STEPS)
    body["spec"]["trainer"] |= {"compile": True, "precision": "bfloat16"}
    world.apply(body)
    status = world.await_phase("llama-fsdp", "Succeeded", timeout=300)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7


def test_a_job_goes_on_where_a_deleted_one_of_its_name_has_left_off(world: World, hands: Hands) -> None:
    """The claim of the sample is retained; the volume behind it is a folder of the node."""
    name = "llama-checkpoint"
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
