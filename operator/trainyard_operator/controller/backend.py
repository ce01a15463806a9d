"""The one interface through which the operator touches the world, and what can go wrong there."""

from collections.abc import Sequence
from typing import Any, Protocol

from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.observation import Pod, Worker
from trainyard_operator.lifecycle.status_builder import Event


class BackendError(Exception):
    """The world refused. Subclasses say what that means for the job (see `reconcile.VERDICTS`)."""


class Stale(BackendError):
    """The decision was made from an old view: look again, then decide anew."""


class Gone(BackendError):
    """The job does not exist any more."""


class Unavailable(BackendError):
    """The world does not answer, or asks for patience: try again later."""


class Refused(BackendError):
    """The world will not have a child of the job; trying again helps only once somebody has changed something."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Backend(Protocol):
    """A world in which jobs have pods. All methods are idempotent and raise `BackendError`."""

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Store a status, if the job is still the one that was looked at (its resource version), else `Stale`."""
        ...

    async def list_pods(self, job: TrainingJob) -> list[Pod]:
        """The pods of the job as they are now, not as a cache has them."""
        ...

    async def create(self, job: TrainingJob, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Create children, as many at a time as the world takes; one that exists and is the job's own is fine."""
        ...

    async def delete_pods(self, job: TrainingJob, workers: Sequence[Worker], *, force: bool = False) -> None:
        """Start to delete pods, each only if it is still the one that was looked at (its UID); `force`: at once."""
        ...

    async def tell(self, job: TrainingJob, event: Event) -> None:
        """Record an event on the job."""
        ...

    def token(self, job: TrainingJob) -> str:
        """What the job's pods and the operator both know, so that an order is known to be one."""
        ...

    async def ask(self, job: TrainingJob, pods: Sequence[Pod]) -> list[PodState | None]:
        """What the launchers of pods say of themselves; None for one that does not answer. Raises nothing."""
        ...

    async def order(self, job: TrainingJob, pods: Sequence[Pod], attempt: int | None) -> list[PodState | None]:
        """Tell the launchers of pods to start an attempt, or (None) to end. None for one that does not follow."""
        ...

    def metrics_url(self, pod: Pod) -> str | None:
        """Where a running pod of the built-in trainer serves its metrics."""
        ...
