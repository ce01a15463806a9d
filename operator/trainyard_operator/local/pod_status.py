"""What a kubelet and a scheduler write into a pod, in a world that has neither."""

from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard.protocol import constants

Status = dict[str, Any]


def pending() -> Status:
    """The pod has just been made."""
    return {"phase": "Pending"}


def unschedulable(places: int) -> Status:
    """There is no place for the pod."""
    message = f"all {places} places of this machine are taken."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def running(*, ready: bool) -> Status:
    """The container runs."""
    return {"phase": "Running", **_container({"running": {"startedAt": now()}}, ready=ready)}


def ended(code: int, reason: str, message: str) -> Status:
    """The container has exited."""
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": now()}}
    return {"phase": "Succeeded" if code == 0 else "Failed", **_container(state, ready=False)}


def _container(state: dict[str, Any], *, ready: bool) -> Status:
    return {
        "containerStatuses": [{"name": constants.WORKER_CONTAINER, "state": state}],
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}],
    }


def now(later: float = 0) -> str:
    """The time, or that many seconds later, as the API has it."""
    return (datetime.now(UTC) + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")
