"""What only a node can find wrong: each gives one clear condition and one event, and the job says so at once."""

import pytest

from tests.cluster import ClusterError
from tests.e2e.world import World, eventually, trainer_job

pytestmark = pytest.mark.e2e


def _await_reason(world: World, job: str, reason: str) -> list[str]:
    """What the condition and the one event of a reason say. The condition goes on counting workers after the event."""

    def probe() -> str | None:
        condition = world.condition(job, "Running")
        return condition["message"] if condition.get("reason") == reason else None

    message = eventually(f"{job}: Running is False with reason {reason}", probe)
    events = eventually(f"{job}: event {reason}", lambda: [m for r, m in world.events(job) if r == reason])
    assert len(events) == 1, events
    assert world.status(job)["phase"] == "Pending"
    return [message, *events]


def test_an_image_that_cannot_be_pulled(world: World) -> None:
    world.apply(trainer_job("no-image", steps=1, image="localhost:1/nothing:1"))
    for message in _await_reason(world, "no-image", "ImagePullFailed"):
        assert "cannot pull image localhost:1/nothing:1" in message
        assert "check spec.image" in message


def test_a_pod_that_can_never_be_scheduled(world: World) -> None:
    resources = {"resources": {"requests": {"cpu": "1000"}}}
    world.apply(trainer_job("too-big", steps=1, workers=resources))
    for message in _await_reason(world, "too-big", "Unschedulable"):
        assert "of 2 workers: " in message
        assert "Insufficient cpu" in message
        assert "check spec.workers.resources" in message


def test_a_text_file_that_is_not_there(world: World) -> None:
    data = {"source": "text", "path": "/data/nowhere.txt", "sequenceLength": 64}
    world.apply(trainer_job("no-text", steps=1, trainer={"data": data}))
    status = world.await_phase("no-text", "Failed", timeout=60)
    failed = world.condition("no-text", "Failed")
    assert failed["reason"] == "InvalidConfig"
    assert "spec.trainer.data.path: /data/nowhere.txt" in failed["message"]
    assert status["restarts"] == 0, "no restart can help"
    assert (failed["reason"], failed["message"]) in world.events("no-text")


def test_kubectl_refuses_an_unknown_field_and_a_broken_rule(world: World) -> None:
    misspelt = trainer_job("typo", steps=1)
    misspelt["spec"]["wrokers"] = {}
    uneven = trainer_job("uneven", steps=1, replicas=3)
    for body, message in (
        (misspelt, 'unknown field "spec.wrokers"'),
        (uneven, "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks"),
    ):
        with pytest.raises(ClusterError, match="exited 1") as refusal:
            world.apply(body)
        assert message in str(refusal.value)
