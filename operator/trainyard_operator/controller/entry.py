"""What the cache holds of one job: the job, its pods, and what is known of both from elsewhere.

The pods are kept as a plan needs them. As long as none has changed, all looks at a job share one tuple of them.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.acceptance import AcceptedJob
from trainyard_operator.controller.pod_calls import REPORTED_AFTER, CallSchedule
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import CreationError, WorkerPod, WorkerState, apply_launcher_state


@dataclass(slots=True)
class PageProblem:
    """Why the metrics page of rank 0 cannot be read, or which part of it cannot be used."""

    message: str
    pod_uid: str
    last_seen: datetime


class Deletion(NamedTuple):
    """The deletion of a pod that the API server has accepted."""

    at: float
    """Time of the event loop."""
    force: bool


class _Observed(NamedTuple):
    """A pod with what is known from its launcher, and what that was made from."""

    pod: WorkerPod
    inputs: tuple[PodState | None, bool, bool]
    """State of the launcher, whether it is silent, and whether it is unresponsive."""
    result: WorkerPod


@dataclass(slots=True)
class Entry:
    """One job with everything that is cached about it."""

    job: TrainingJob | None = None
    """The newest version of the job that can be read."""
    unreadable: UnreadableJob | None = None
    """The job, if its newest version cannot be read; `job` is outdated then, or None."""
    reported_problem: str | None = None
    """The problem of an unreadable job that an event reports, because its status cannot."""
    accepted: AcceptedJob | None = None
    """What the job runs, made from the snapshot of its spec when that was last needed."""
    workers: dict[str, WorkerPod] = field(default_factory=dict)
    """Pods by name; only `put_worker` and `drop_worker` change it."""
    progress: Progress | None = None
    """Progress from rank 0's metrics page when it was last read."""
    page_problem: PageProblem | None = None
    creation_error: CreationError | None = None
    launcher_states: dict[str, PodState] = field(default_factory=dict)
    """Last state that each launcher reported, by the UID of its pod."""
    launcher_schedules: dict[str, CallSchedule] = field(default_factory=dict)
    """When each launcher was and will be queried, by the UID of its pod."""
    unresponsive: set[str] = field(default_factory=set)
    """UIDs of pods whose launcher rejected or did not answer a restart request."""
    deletions: dict[str, Deletion] = field(default_factory=dict)
    """Deletions of pods that the API server has accepted, by the UID of the pod."""
    quiet_since: datetime | None = None
    """Since when the stored status differs in figures and messages only; None if it does not."""
    _tally: Counter[tuple[int, WorkerState]] = field(default_factory=Counter)
    """Numbers of pods by the attempt that they were created for and their state."""
    _owned: tuple[WorkerPod, ...] | None = None
    """The pods of `_owner`, until a pod changes."""
    _owner: str | None = None
    _observed: dict[str, _Observed] = field(default_factory=dict)
    """Pods with what is known from their launchers, by UID."""

    @property
    def newest(self) -> TrainingJob | UnreadableJob | None:
        """The newest version of the job, whether or not it can be read."""
        return self.unreadable or self.job

    @property
    def accepted_job(self) -> TrainingJob | None:
        """The job with the spec that it runs, which the live one may differ from."""
        return self.job.replace(spec=self.accepted.spec) if self.job and self.accepted else self.job

    def forget_run(self) -> None:
        """Forget what is known of the job besides its pods: another job has its name, or none."""
        self.accepted = self.progress = self.page_problem = self.creation_error = self.quiet_since = None

    def put_worker(self, worker: WorkerPod) -> None:
        """Add a pod, or replace it."""
        self._count_out(worker.name)
        self.workers[worker.name] = worker
        self._tally[worker.attempt, worker.state] += 1
        self._owned = None

    def drop_worker(self, name: str) -> None:
        """Remove a pod that is gone."""
        self._count_out(name)
        del self.workers[name]
        self._owned = None

    def count(self, attempt: int, *states: WorkerState) -> int:
        """Return how many pods of an attempt are in some states; without states, how many there are."""
        return sum(self._tally[attempt, state] for state in states or WorkerState)

    def observe_all(self, owner: str | None) -> tuple[WorkerPod, ...]:
        """Return the pods of an owner, each with what is known from its launcher."""
        if self._owned is None or self._owner != owner:
            self._owned = tuple(worker for worker in self.workers.values() if worker.owner_uid == owner)
            self._owner = owner
        # Nothing is known from any launcher, as while a group starts: all looks share one observation.
        if not (self.launcher_states or self.launcher_schedules or self.unresponsive):
            return self._owned
        return tuple(map(self.observe, self._owned))

    def observe(self, worker: WorkerPod) -> WorkerPod:
        """Return a pod with what is known from its launcher; a copy is only made when one of both has changed."""
        schedule = self.launcher_schedules.get(worker.uid)
        silent = schedule is not None and schedule.failures >= REPORTED_AFTER
        state, unresponsive = self.launcher_states.get(worker.uid), worker.uid in self.unresponsive
        if state is None and not silent and not unresponsive:
            return worker
        known, inputs = self._observed.get(worker.uid), (state, silent, unresponsive)
        if known is None or known.pod is not worker or known.inputs != inputs:
            pod = replace(worker, launcher_silent=True) if silent else worker
            result = apply_launcher_state(pod, state, unresponsive=unresponsive)
            known = self._observed[worker.uid] = _Observed(worker, inputs, result)
        return known.result

    def forget_pod(self, uid: str) -> None:
        """Forget what is known of a pod that is gone, and of its launcher."""
        self.launcher_states.pop(uid, None)
        self.launcher_schedules.pop(uid, None)
        self.unresponsive.discard(uid)
        self.deletions.pop(uid, None)
        self._observed.pop(uid, None)

    def _count_out(self, name: str) -> None:
        """Take a pod out of the numbers, if it is known."""
        if (known := self.workers.get(name)) is not None:
            kind = (known.attempt, known.state)
            self._tally[kind] -= 1
            if not self._tally[kind]:
                del self._tally[kind]
