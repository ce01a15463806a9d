"""The cache of all jobs with their pods and their progress, fed by watch streams and by API responses.

A watch stream lags behind the operator's own writes, and after an interruption it may have lost deletions. So responses
to the operator's own writes are cached too, an older version never replaces a newer one, and a complete list replaces
everything from time to time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple, Self

from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.acceptance import AcceptedJob
from trainyard_operator.controller.pod_calls import REPORTED_AFTER, CallSchedule
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import (
    CreationError,
    Pod,
    WorkerPod,
    apply_launcher_state,
    job_name_of,
    observe_pod,
)

Key = tuple[str, str]
"""Namespace and name of a job."""

AnyJob = TrainingJob | UnreadableJob

_MAX_TOMBSTONES = 10_000
"""UIDs of deleted objects that are remembered."""


class CachedPod(NamedTuple):
    """What is kept of a pod: a pod of the API server takes ten times as much memory."""

    key: Key
    """Namespace and name of the job that its labels name."""
    worker: WorkerPod

    @classmethod
    def read(cls, pod: Pod) -> Self | None:
        """Return what is kept of a pod; None for a pod that is no job's."""
        name = job_name_of(pod)
        return None if name is None else cls((pod["metadata"]["namespace"], name), observe_pod(pod))


class ByKind(NamedTuple):
    """A number of jobs, and one of pods."""

    jobs: int
    pods: int


@dataclass(slots=True)
class PageProblem:
    """Why the metrics page of rank 0 cannot be read, or which part of it cannot be used."""

    message: str
    pod_uid: str
    last_seen: datetime


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
    """Pods by name."""
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
        self.accepted = self.progress = self.page_problem = self.creation_error = None

    def observe(self, worker: WorkerPod) -> WorkerPod:
        """Return a pod with what is known from its launcher."""
        schedule = self.launcher_schedules.get(worker.uid)
        if schedule is not None and schedule.failures >= REPORTED_AFTER:
            worker = replace(worker, launcher_silent=True)
        state = self.launcher_states.get(worker.uid)
        return apply_launcher_state(worker, state, unresponsive=worker.uid in self.unresponsive)

    def forget_launcher(self, uid: str) -> None:
        """Forget what is known of the launcher in a pod that is gone."""
        self.launcher_states.pop(uid, None)
        self.launcher_schedules.pop(uid, None)
        self.unresponsive.discard(uid)


class Cache:
    """Jobs and their pods, by the namespace and name of the job."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self.primed = False
        """Whether a complete list has been read, so that an object that is not cached does not exist."""
        self.delivered = ByKind(0, 0)
        """Events that the watch streams have delivered, by kind."""

    def __len__(self) -> int:
        return sum(entry.newest is not None for entry in self._entries.values())

    def count_delivery(self, *, jobs: int = 0, pods: int = 0) -> None:
        """Count events that a watch stream has delivered."""
        self.delivered = ByKind(self.delivered.jobs + jobs, self.delivered.pods + pods)

    def get(self, key: Key) -> Entry | None:
        """Return the entry of a job; None if the job does not exist."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.newest is not None else None

    def jobs(self) -> Iterator[tuple[Key, Entry]]:
        """Return an iterator over the keys and entries of all jobs, those that cannot be read included."""
        return ((key, entry) for key, entry in list(self._entries.items()) if entry.newest is not None)

    def changes_spec(self, job: AnyJob) -> bool:
        """Return whether a user has created, changed or deleted a job since the version of it that is cached."""
        entry = self._entries.get(job.key)
        cached = entry.newest.metadata if entry is not None and entry.newest is not None else None
        given = job.metadata
        return cached is None or (cached.uid, cached.generation, cached.deletion_timestamp) != (
            given.uid,
            given.generation,
            given.deletion_timestamp,
        )

    def put_job(self, job: AnyJob) -> Key:
        """Cache a job, unless a newer version of it is cached. Return its key."""
        key = job.key
        if job.metadata.uid in self._tombstones:
            return key
        entry = self._entries.setdefault(key, Entry())
        cached = entry.newest
        if cached is None or _version(job) >= _version(cached):
            if cached is not None and cached.metadata.uid != job.metadata.uid:  # deleted and created again
                entry.job = None
                entry.forget_run()
            if isinstance(job, UnreadableJob):
                entry.unreadable = job
            else:
                entry.job, entry.unreadable = job, None
        return key

    def remove_job(self, key: Key, uid: str) -> None:
        """Remove a job; its pods stay until they are removed too."""
        self._record_deletion(uid)
        entry = self._entries.get(key)
        if entry is not None and entry.newest is not None and entry.newest.metadata.uid == uid:
            entry.job = entry.unreadable = None
            entry.forget_run()
            self._drop_if_empty(key)

    def put_pod(self, pod: Pod) -> Key | None:
        """Cache a pod, unless a newer version of it is cached. Return the key of its job; None if it has none."""
        cached = CachedPod.read(pod)
        return self._put(cached) if cached is not None else None

    def _put(self, pod: CachedPod) -> Key | None:
        key, worker = pod
        if worker.uid in self._tombstones:
            return None
        entry = self._entries.setdefault(key, Entry())
        cached = entry.workers.get(worker.name)
        if cached is None or worker.resource_version >= cached.resource_version:
            if cached is not None and cached.uid != worker.uid:
                entry.forget_launcher(cached.uid)
            entry.workers[worker.name] = worker
        return key

    def remove_pod(self, pod: Pod) -> Key | None:
        """Remove a pod. Return the key of its job; None if it has none."""
        name, metadata = job_name_of(pod), pod["metadata"]
        self._record_deletion(metadata["uid"])
        if name is None:
            return None
        key = (metadata["namespace"], name)
        self._remove(key, metadata["name"], metadata["uid"])
        return key

    def _remove(self, key: Key, name: str, uid: str) -> None:
        entry = self._entries.get(key)
        if entry is None:
            return
        cached = entry.workers.get(name)
        if cached is not None and cached.uid == uid:
            del entry.workers[name]
            entry.forget_launcher(uid)
        self._drop_if_empty(key)

    def workers(self, key: Key) -> tuple[WorkerPod, ...]:
        """Return the pods that a job owns; pods of a deleted job of the same name have another owner."""
        entry = self._entries[key]
        uid = entry.job.metadata.uid if entry.job else None
        return tuple(entry.observe(worker) for worker in entry.workers.values() if worker.owner_uid == uid)

    def count_missed(self, jobs: Iterable[AnyJob], pods: Iterable[CachedPod], version: int) -> ByKind:
        """Return how many objects of a complete list are new, newer or gone: what the watch streams have missed."""
        jobs, pods = list(jobs), list(pods)
        gone_jobs, gone_pods = self._gone(jobs, pods, version)
        return ByKind(
            jobs=len(gone_jobs) + sum(self._is_newer_job(job) for job in jobs),
            pods=len(gone_pods) + sum(self._is_newer_pod(pod) for pod in pods),
        )

    def replace(self, jobs: Iterable[AnyJob], pods: Iterable[CachedPod], version: int) -> int:
        """Cache a complete list made at resource version `version`, and remove what it does not contain.

        Objects that were cached at a later version stay. Return how many objects were new, newer or gone, which is how
        many changes the watch streams have missed.
        """
        jobs, pods = list(jobs), list(pods)
        missed = sum(self.count_missed(jobs, pods, version))
        gone_jobs, gone_pods = self._gone(jobs, pods, version)
        for key, worker in gone_pods:
            self._record_deletion(worker.uid)
            self._remove(key, worker.name, worker.uid)
        for job in gone_jobs:
            self.remove_job(job.key, job.metadata.uid)
        for job in jobs:
            self.put_job(job)
        for pod in pods:
            self._put(pod)
        self.primed = True
        return missed

    def _gone(
        self, jobs: Iterable[AnyJob], pods: Iterable[CachedPod], version: int
    ) -> tuple[list[AnyJob], list[CachedPod]]:
        """Return the cached jobs and pods that a complete list made at a resource version does not contain."""
        listed = {job.metadata.uid for job in jobs} | {pod.worker.uid for pod in pods}
        entries = self._entries.items()
        cached_jobs = [entry.newest for _, entry in entries if entry.newest is not None]
        gone_jobs = [j for j in cached_jobs if j.metadata.uid not in listed and _version(j) <= version]
        gone_pods = [
            CachedPod(key, worker)
            for key, entry in entries
            for worker in entry.workers.values()
            if worker.uid not in listed and worker.resource_version <= version
        ]
        return gone_jobs, gone_pods

    def _is_newer_job(self, job: AnyJob) -> bool:
        if job.metadata.uid in self._tombstones:
            return False
        entry = self._entries.get(job.key)
        return entry is None or entry.newest is None or _version(entry.newest) < _version(job)

    def _is_newer_pod(self, pod: CachedPod) -> bool:
        if pod.worker.uid in self._tombstones:
            return False
        entry = self._entries.get(pod.key)
        cached = entry.workers.get(pod.worker.name) if entry else None
        return cached is None or cached.resource_version < pod.worker.resource_version

    def _record_deletion(self, uid: str) -> None:
        """Remember a deletion, so that a late response does not bring the object back."""
        self._tombstones[uid] = None
        while len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _drop_if_empty(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.newest is None and not entry.workers:
            del self._entries[key]


def _version(job: AnyJob) -> int:
    """Return the resource version, a number that also grows from an object to its namesake (KEP-5504)."""
    return int(job.metadata.resource_version or 0)
