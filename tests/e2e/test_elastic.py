"""A group that finds room for one of its workers only, on a real scheduler, and for both of them later."""

import json

import pytest

from tests.e2e.node import Hands
from tests.e2e.world import World, eventually, trainer_job

pytestmark = pytest.mark.e2e

ROOM = "example.com/room"


def offer(world: World, room: int) -> None:
    """Let the node have so much of a resource of which each worker needs one."""
    [node] = [body["metadata"]["name"] for body in world.objects("nodes")]
    amount = {ROOM: str(room)}
    patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
    world.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)


def test_a_group_shrinks_to_the_room_there_is_and_grows_with_it(world: World, hands: Hands) -> None:
    volume = hands.volume(world, "elastic")
    volume.offer(world, "elastic")
    offer(world, 1)
    try:
        world.apply(
            trainer_job(
                "elastic",
                steps=100_000,
                workers={"resources": {"limits": {ROOM: 1}}},
                checkpoint={"claim": {"size": "1Gi"}, "everySteps": 100_000},
                elastic={"minReplicas": 1, "resizeAfterSeconds": 3},
            )
        )
        reached = world.await_step("elastic", 10, attempt=2)["step"]
        status = world.status("elastic")
        assert (status["workers"]["desired"], status["elastic"]["replicas"]) == (1, 1)
        degraded = world.condition("elastic", "Degraded")
        assert (degraded["status"], degraded["reason"], degraded["message"]) == ("True", "Resized", "1 of 2 workers")
        eventually(
            "a placeholder waits",
            lambda: [p for p in world.objects("pods", "trainyard.dev/role=placeholder") if _pending(p)],
        )
        offer(world, 2)
        progress = world.await_step("elastic", reached + 10, attempt=3)
        assert progress["resumedStep"] >= reached, "the steps of one worker were saved before it ended"
        status = world.status("elastic")
        assert (status["workers"]["desired"], status["restartsCounted"]) == (2, 0)
        assert world.condition("elastic", "Degraded")["status"] == "False"
        assert {p["metadata"]["name"] for p in world.objects("pods")} == {"elastic-3-0", "elastic-3-1"}
        assert [r for r, _ in world.events("elastic")].count("Resized") == 2
    finally:
        world.kubectl("delete", "tj", "elastic", "--ignore-not-found", check=False)
        offer(world, 0)
        volume.withdraw(world, wait=False)
        volume.remove()


def _pending(pod: dict[str, dict[str, str]]) -> bool:
    return pod["status"].get("phase") == "Pending"
