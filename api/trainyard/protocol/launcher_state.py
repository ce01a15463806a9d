"""State of a pod, as its launcher reports it to the operator (see `trainyard.protocol.launcher_protocol`)."""

from trainyard.base import ApiModel, Count, Timestamp
from trainyard.protocol.launcher_protocol import ATTEMPT_PATH, READY_PATH, RELEASE_PATH, STATE_PATH

__all__ = ["ATTEMPT_PATH", "READY_PATH", "RELEASE_PATH", "STATE_PATH", "ExitInfo", "PodState"]


class ExitInfo(ApiModel):
    """How an attempt in a pod ended: what the kubelet would report if the container had exited with its ranks."""

    exit_code: int
    """Exit code of the attempt."""
    message: str = ""
    """Termination message of the attempt."""
    at: Timestamp
    """Time at which the attempt ended."""


class PodState(ApiModel):
    """State of a worker pod, as its launcher reports it."""

    attempt: Count
    """Number of the attempt that runs in the pod, or ran in it last."""
    exit_info: ExitInfo | None = None
    """How the attempt ended; absent while it runs. The launcher then waits for a request."""
