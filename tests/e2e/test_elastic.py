"""A group for which a real scheduler has capacity for one worker only, and for both of them later."""

import json

import pytest

from tests.e2e.namespace import Namespace, eventually, trainer_job
from tests.e2e.node_faults import NodeFaults

pytestmark = pytest.mark.e2e

ROOM = "example.com/room"


def offer(namespace: Namespace, room: int) -> None:
    """Set the node's capacity of a resource of which each worker needs one."""
    [node] = [body["metadata"]["name"] for body in namespace.objects("nodes")]
    amount = {ROOM: str(room)}
    patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
    namespace.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)


def test_a_group_shrinks_to_the_room_there_is_and_grows_with_it(namespace: Namespace, node_faults: NodeFaults) -> None:
    volume = node_faults.volume(namespace, "elastic")
    volume.offer(namespace, "elastic")
    offer(namespace, 1)
    try:
        namespace.apply(
            trainer_job(
                "elastic",
                steps=100_000,
                workers={"resources": {"limits": {ROOM: 1}}, "procsPerWorker": 1},
                checkpoint={"claim": {"size": "1Gi"}, "everySteps": 100_000},
                elastic={"minReplicas": 1, "resizeAfterSeconds": 3},
            )
        )
        reached = namespace.await_step("elastic", 10, attempt=2)["step"]
        status = namespace.status("elastic")
        assert (status["workers"]["desired"], status["elastic"]["replicas"]) == (1, 1)
        degraded = namespace.condition("elastic", "Degraded")
        assert (degraded["status"], degraded["reason"], degraded["message"]) == ("True", "Resized", "1 of 2 workers")
        eventually(
            "a placeholder waits",
            lambda: [p for p in namespace.objects("pods", "trainyard.dev/role=placeholder") if _pending(p)],
        )
        offer(namespace, 2)
        progress = namespace.await_step("elastic", reached + 10, attempt=3)
        assert progress["resumedStep"] >= reached, "the steps of one worker were saved before it ended"
        status = namespace.status("elastic")
        assert (status["workers"]["desired"], status["restartsCounted"]) == (2, 0)
        assert namespace.condition("elastic", "Degraded")["status"] == "False"
        assert {p["metadata"]["name"] for p in namespace.objects("pods")} == {"elastic-3-0", "elastic-3-1"}
        assert [r for r, _ in namespace.events("elastic")].count("Resized") == 2
    finally:
        namespace.kubectl("delete", "tj", "elastic", "--ignore-not-found", check=False)
        offer(namespace, 0)
        volume.withdraw(namespace, wait=False)
        volume.remove()


def _pending(pod: dict[str, dict[str, str]]) -> bool:
    return pod["status"].get("phase") == "Pending"
