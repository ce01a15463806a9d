"""State of a pod, as its launcher reports it to the operator (see `trainyard.protocol.launcher_protocol`)."""

from trainyard.base import ApiModel, Count, Timestamp
from trainyard.protocol.launcher_protocol import ATTEMPT_PATH, READY_PATH, RELEASE_PATH, STATE_PATH

__all__ = ["ATTEMPT_PATH", "READY_PATH", "RELEASE_PATH", "STATE_PATH", "ExitInfo", "PodState"]


class ExitInfo(ApiModel):
    """How the ranks of a pod ended: what the kubelet would say of the container, had it ended with them."""

    exit_code: int
    """Exit code that the container would have."""
    message: str = ""
    """Its termination message."""
    at: Timestamp
    """When."""


class PodState(ApiModel):
    """What a pod does."""

    attempt: Count
    """Attempt that its ranks take part in, or took part in."""
    exit_info: ExitInfo | None = None
    """Set once that attempt has ended, and the pod waits for another one."""
