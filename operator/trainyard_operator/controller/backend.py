"""The interface between the controller and the place where pods run, and the errors that it raises."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from yarl import URL

from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.controller.backoff import MAX_BACKOFF
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import Pod, WorkerPod
from trainyard_operator.lifecycle.status_builder import Event

OnCreated = Callable[[dict[str, Any]], object]
"""Called with a child of a job as it exists."""


def ignore(_: dict[str, Any]) -> None:
    """Do nothing with a child."""


class BackendError(Exception):
    """A request failed. After every error but `Gone` the job is reconciled again, with back-off."""

    log_level: ClassVar[int] = logging.WARNING
    """Level at which the reconciler logs the error."""
    explanation: ClassVar[str] = "the request failed; retrying"
    """What the error means, and what the operator does about it."""
    max_backoff: ClassVar[float] = MAX_BACKOFF
    """Limit of the back-off in seconds."""
    retry_after: float = 0.0
    """Seconds that the API server wants the operator to wait."""


class Stale(BackendError):
    """The decision was made from outdated data."""

    log_level = logging.DEBUG
    max_backoff = 1.0  # the data is updated within moments
    explanation = "the cached state was outdated; reconciling again"


class Gone(BackendError):
    """The job does not exist any more, so there is nothing to retry."""

    log_level = logging.DEBUG
    explanation = "the job does not exist any more"


class Unavailable(BackendError):
    """The API server does not answer, or asks for a delay."""

    explanation = "the API server did not answer; retrying"

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(BackendError):
    """The API server refuses a child of the job, until a user changes something."""

    explanation = "the API server refused an object of the job; retrying, with the reason in the status"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Backend(Protocol):
    """A place where the pods of jobs run: a cluster, or this machine.

    All methods are idempotent. They raise `BackendError` unless they say otherwise.
    """

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Store a status and return the stored job.

        Raises:
            Stale: the stored job has another resource version than `job`.
        """
        ...

    async def report_unreadable(self, job: UnreadableJob, patch: Mapping[str, Any]) -> bool:
        """Merge a patch into the status of a job that this operator cannot read; return whether it was stored.

        An API server stores no status of an object that its CRD, since it was changed, does not admit any more.
        """
        ...

    async def dry_run(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        """Return why a pod is malformed, in the words of the API server; None if it is not, or if that is not known.

        The same if the API server would give a worker a memory limit into which the job does not fit. A refusal that an
        administrator can lift (a quota, a policy) does not make a pod malformed.
        """
        ...

    async def store_revision(self, job: TrainingJob, revision: dict[str, Any]) -> dict[str, Any]:
        """Store a ControllerRevision, unless the job has one of that name already; return the stored one."""
        ...

    async def load_revision(self, job: TrainingJob, name: str) -> dict[str, Any] | None:
        """Return the ControllerRevision of a job with this name; None if there is none."""
        ...

    async def list_pods(self, job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
        """Return the job's pods as they are now, not as a cache has them.

        Args:
            job: the job.
            other_than: only pods of other attempts than this one; None: all pods.
        """
        ...

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        """Create children in parallel, and call `on_created` with each one, also with one that the job owns already.

        Pods are created with slow start: `first` at a time in the beginning, then more and more, and none after a
        failure.
        """
        ...

    async def delete_groups(self, job: TrainingJob, api_version: str, *, other_than: int | None = None) -> None:
        """Delete the job's group objects of a gang scheduler.

        Args:
            job: the job.
            api_version: API group and version of the scheduler's group objects.
            other_than: only those of other attempts than this one; None: all.
        """
        ...

    async def find_queue_problem(self, job: TrainingJob, queue: str) -> str | None:
        """Return why a LocalQueue of Kueue cannot be used by a job, with the fix; None if it exists."""
        ...

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        """Start to delete pods, each only if its UID is unchanged; `force`: without a grace period."""
        ...

    async def delete_job(self, job: TrainingJob) -> None:
        """Start to delete a job with all that it owns, only if it has not changed.

        Raises:
            Stale: the stored job has another resource version than `job`.
        """
        ...

    async def record_event(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        """Record an event about the job."""
        ...

    def launcher_token(self, job: TrainingJob) -> str:
        """Return the secret that authenticates the operator to the launchers in the job's pods."""
        ...

    async def get_launcher_state(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Return the state of the launcher in a pod, None if it does not answer. Raises nothing."""
        ...

    async def start_attempt(self, job: TrainingJob, worker: WorkerPod, attempt: int) -> PodState | None:
        """Request from the launcher in a pod that it starts an attempt; return its state.

        The state of a launcher that rejects or does not answer the request is None. Raises nothing.
        """
        ...

    async def release(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Request from a launcher that it exits with the code of its failed ranks; otherwise as `start_attempt`."""
        ...

    def metrics_url(self, job: TrainingJob, worker: WorkerPod) -> URL | None:
        """Return the URL of a pod's metrics page; None if it serves none or has no address yet."""
        ...
