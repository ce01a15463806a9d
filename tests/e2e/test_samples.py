"""Every layout of the samples on the real node: ranks in pods that find each other over the cluster's network."""

import pytest

from tests.e2e.world import World
from tests.support.samples import TRAINED, sample

pytestmark = pytest.mark.e2e

STEPS = 5


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "gpt-ddp"])
def test_sample_trains_on_the_node(world: World, name: str) -> None:
    world.apply(sample(name, steps=STEPS))
    status = world.await_phase(name, "Succeeded", timeout=180)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7
    assert status["restarts"] == 0


def test_compiled_blocks_in_bfloat16_train_on_the_node(world: World) -> None:
    """The image holds the compiler, and its user, who has no name, a place for what it makes."""
    body = sample("gpt-fsdp", steps=STEPS)
    body["spec"]["trainer"] |= {"compile": True, "precision": "bfloat16"}
    world.apply(body)
    status = world.await_phase("gpt-fsdp", "Succeeded", timeout=300)
    assert status["progress"]["step"] == STEPS
    assert 0 < status["progress"]["loss"] < 7
