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
