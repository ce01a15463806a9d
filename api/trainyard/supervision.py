"""What a worker's launcher tells the operator over its port, where a group may be restarted inside its pods.

    GET  /readyz          200 while the ranks run, 503 once their attempt has ended; for the kubelet, without a token
    GET  /v1/state        a `PodState`
    POST /v1/attempt/N    end what runs, and start attempt N; 202, or 409 if N is not newer than what runs
    POST /v1/release      end with the exit code of the attempt that has ended; 202, or 409 if it still runs

All but the first want the job's token, as `Authorization: Bearer TOKEN`.
"""

from trainyard.resource.base import ApiModel, Count, Timestamp
from trainyard.supervisor import ATTEMPT_PATH, READY_PATH, RELEASE_PATH, STATE_PATH

__all__ = ["ATTEMPT_PATH", "READY_PATH", "RELEASE_PATH", "STATE_PATH", "Ending", "PodState"]


class Ending(ApiModel):
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
    ending: Ending | None = None
    """Set once that attempt has ended, and the pod waits for another one."""
