"""The cache of all jobs with their pods and their progress, fed by watch streams and by API responses.

A watch stream lags behind the operator's own writes, and after an interruption it may have lost deletions. So responses
to the operator's own writes are cached too, an older version never replaces a newer one, and a complete list replaces
everything from time to time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.entry import Entry
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, job_name_of, observe_pod

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
                entry.forget_pod(cached.uid)
            entry.put_worker(worker)
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
            entry.drop_worker(name)
            entry.forget_pod(uid)
        self._drop_if_empty(key)

    def workers(self, key: Key) -> tuple[WorkerPod, ...]:
        """Return the pods that a job owns; pods of a deleted job of the same name have another owner."""
        entry = self._entries[key]
        return entry.observe_all(entry.job.metadata.uid if entry.job else None)

    def find_pod(self, pod: Pod) -> tuple[WorkerPod | None, bool]:
        """Return what is cached of a pod, None if nothing is, and whether the operator has deleted it."""
        name, metadata = job_name_of(pod), pod["metadata"]
        entry = self._entries.get((metadata["namespace"], name)) if name is not None else None
        worker = entry.workers.get(metadata["name"]) if entry is not None else None
        return worker, entry is not None and metadata["uid"] in entry.deletions

    def knows_version(self, key: Key, uid: str, version: str) -> bool:
        """Return whether this version of a job is cached, or a newer one."""
        cached = entry.newest if (entry := self._entries.get(key)) is not None else None
        return cached is not None and cached.metadata.uid == uid and _version(cached) >= int(version)

    def count_missed(self, jobs: Iterable[AnyJob], pods: Iterable[CachedPod], version: int) -> ByKind:
        """Return how many objects of a complete list are new, newer or gone: what the watch streams have missed."""
        jobs, pods = list(jobs), list(pods)
        return ByKind(
            jobs=len(self._gone_jobs(jobs, version)) + sum(self._is_newer_job(job) for job in jobs),
            pods=len(self._gone_pods(pods, version)) + sum(self._is_newer_pod(pod) for pod in pods),
        )

    def replace(self, jobs: Iterable[AnyJob], pods: Iterable[CachedPod], version: int) -> int:
        """Cache a complete list made at resource version `version`, and remove what it does not contain.

        Objects that were cached at a later version stay. Return how many objects were new, newer or gone, which is how
        many changes the watch streams have missed.
        """
        jobs, pods = list(jobs), list(pods)
        missed = sum(self.count_missed(jobs, pods, version))
        gone_jobs = self._gone_jobs(jobs, version)
        self.replace_pods(pods, version)
        self._replace_jobs(jobs, gone_jobs)
        self.primed = True
        return missed

    def replace_jobs(self, jobs: Iterable[AnyJob], version: int, namespace: str | None = None) -> set[Key]:
        """Cache a complete list of the jobs of a namespace (None: of all), and remove those that it does not contain.

        Jobs that were cached at a later version than that of the list stay. Return the keys of the jobs that may have
        changed.
        """
        jobs = list(jobs)
        gone = [job for job in self._gone_jobs(jobs, version) if namespace in (None, job.key[0])]
        changed = {job.key for job in gone} | {job.key for job in jobs if self._is_newer_job(job)}
        self._replace_jobs(jobs, gone)
        return changed

    def _replace_jobs(self, jobs: Iterable[AnyJob], gone: Iterable[AnyJob]) -> None:
        for job in gone:
            self.remove_job(job.key, job.metadata.uid)
        for job in jobs:
            self.put_job(job)

    def replace_pods(self, pods: Iterable[CachedPod], version: int, namespace: str | None = None) -> set[Key]:
        """Cache a complete list of the pods of a namespace (None: of all), and remove those that it does not contain.

        Pods that were cached at a later version than that of the list stay. Return the keys of the jobs that may have
        changed.
        """
        pods = list(pods)
        gone = [pod for pod in self._gone_pods(pods, version) if namespace in (None, pod.key[0])]
        changed = {pod.key for pod in gone} | {pod.key for pod in pods if self._is_newer_pod(pod)}
        for key, worker in gone:
            self._record_deletion(worker.uid)
            self._remove(key, worker.name, worker.uid)
        for pod in pods:
            self._put(pod)
        return changed

    def _gone_jobs(self, jobs: Iterable[AnyJob], version: int) -> list[AnyJob]:
        """Return the cached jobs that a complete list made at a resource version does not contain."""
        listed = {job.metadata.uid for job in jobs}
        cached = [entry.newest for entry in self._entries.values() if entry.newest is not None]
        return [job for job in cached if job.metadata.uid not in listed and _version(job) <= version]

    def _gone_pods(self, pods: Iterable[CachedPod], version: int) -> list[CachedPod]:
        """Return the cached pods that a complete list made at a resource version does not contain."""
        listed = {pod.worker.uid for pod in pods}
        return [
            CachedPod(key, worker)
            for key, entry in self._entries.items()
            for worker in entry.workers.values()
            if worker.uid not in listed and worker.resource_version <= version
        ]

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
