"""Errors that only a node can find: each gives one clear condition and one event at once."""

import pytest

from tests.cluster import ClusterError
from tests.e2e.namespace import Namespace, eventually, trainer_job

pytestmark = pytest.mark.e2e


def _await_reason(namespace: Namespace, job: str, reason: str) -> list[str]:
    """Return the messages of the condition and of the one event of a reason; the condition may count more workers."""

    def probe() -> str | None:
        condition = namespace.condition(job, "Running")
        return condition["message"] if condition.get("reason") == reason else None

    message = eventually(f"{job}: Running is False with reason {reason}", probe)
    events = eventually(f"{job}: event {reason}", lambda: [m for r, m in namespace.events(job) if r == reason])
    assert len(events) == 1, events
    assert namespace.status(job)["phase"] == "Pending"
    return [message, *events]


def test_an_image_that_cannot_be_pulled(namespace: Namespace) -> None:
    namespace.apply(trainer_job("no-image", steps=1, image="localhost:1/nothing:1"))
    for message in _await_reason(namespace, "no-image", "ImagePullFailed"):
        assert "cannot pull image localhost:1/nothing:1" in message
        assert "check spec.image" in message


def test_a_pod_that_can_never_be_scheduled(namespace: Namespace) -> None:
    resources = {"resources": {"requests": {"cpu": "1000"}}}
    namespace.apply(trainer_job("too-big", steps=1, workers=resources))
    for message in _await_reason(namespace, "too-big", "Unschedulable"):
        assert "of 2 workers: " in message
        assert "Insufficient cpu" in message
        assert "check spec.workers.resources" in message


def test_a_text_file_that_is_not_there(namespace: Namespace) -> None:
    data = {"source": "text", "path": "/data/nowhere.txt", "sequenceLength": 64}
    namespace.apply(trainer_job("no-text", steps=1, trainer={"data": data}))
    status = namespace.await_phase("no-text", "Failed", timeout=60)
    failed = namespace.condition("no-text", "Failed")
    assert failed["reason"] == "InvalidConfig"
    assert "spec.trainer.data.path: /data/nowhere.txt" in failed["message"]
    assert status["restarts"] == 0, "no restart can help"
    assert (failed["reason"], failed["message"]) in namespace.events("no-text")


def test_kubectl_refuses_an_unknown_field_and_a_broken_rule(namespace: Namespace) -> None:
    misspelt = trainer_job("typo", steps=1)
    misspelt["spec"]["wrokers"] = {}
    uneven = trainer_job("uneven", steps=1, replicas=3)
    for body, message in (
        (misspelt, 'unknown field "spec.wrokers"'),
        (uneven, "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks"),
    ):
        with pytest.raises(ClusterError, match="exited 1") as refusal:
            namespace.apply(body)
        assert message in str(refusal.value)
