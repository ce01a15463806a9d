"""Pod statuses as a kubelet and a scheduler would write them."""

from datetime import timedelta
from typing import Any

from trainyard.protocol import constants
from trainyard.time import format_time, utc_now

Status = dict[str, Any]


def pending() -> Status:
    """Return the status of a pod that was just created."""
    return {"phase": "Pending"}


def unschedulable(capacity: int) -> Status:
    """Return the status of a pod that this machine has no capacity for."""
    message = f"this machine runs at most {capacity} pods at a time."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def running(*, ready: bool) -> Status:
    """Return the status of a pod whose container runs."""
    return {"phase": "Running", **_container({"running": {"startedAt": timestamp()}}, ready=ready)}


def ended(code: int, reason: str, message: str) -> Status:
    """Return the status of a pod whose container has exited."""
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": timestamp()}}
    return {"phase": "Succeeded" if code == 0 else "Failed", **_container(state, ready=False)}


def _container(state: dict[str, Any], *, ready: bool) -> Status:
    return {
        "containerStatuses": [{"name": constants.WORKER_CONTAINER, "state": state}],
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}],
    }


def timestamp(later: float = 0) -> str:
    """Return the current time plus some seconds, in the format of the Kubernetes API."""
    return format_time(utc_now() + timedelta(seconds=later))
