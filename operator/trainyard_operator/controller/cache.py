"""The cache of all jobs with their pods and their progress, fed by watch streams and by API responses.

A watch stream lags behind the operator's own writes, and after an interruption it may have lost deletions. So responses
to the operator's own writes are cached too, an older version never replaces a newer one, and a complete list replaces
everything from time to time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.acceptance import AcceptedJob
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

_MAX_TOMBSTONES = 10_000
"""UIDs of deleted objects that are remembered."""


@dataclass(slots=True)
class Entry:
    """One job with everything that is cached about it."""

    job: TrainingJob | None = None
    """The newest version of the job that can be read."""
    unreadable: UnreadableJob | None = None
    """The job, if its newest version cannot be read; `job` is outdated then, or None."""
    accepted: AcceptedJob | None = None
    """What the job runs, made from the snapshot of its spec when that was last needed."""
    pods: dict[str, Pod] = field(default_factory=dict)
    workers: dict[str, WorkerPod] = field(default_factory=dict)
    progress: Progress | None = None
    """Progress from rank 0's metrics page when it was last read."""
    creation_error: CreationError | None = None
    launcher_states: dict[str, PodState] = field(default_factory=dict)
    """Last state that each launcher reported, by the UID of its pod."""
    unresponsive: set[str] = field(default_factory=set)
    """UIDs of pods whose launcher rejected or did not answer a restart request."""

    @property
    def newest(self) -> TrainingJob | UnreadableJob | None:
        """The newest version of the job, whether or not it can be read."""
        return self.unreadable or self.job


class Cache:
    """Jobs and their pods, by the namespace and name of the job."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self.primed = False
        """Whether a complete list has been read, so that an object that is not cached does not exist."""

    def __len__(self) -> int:
        return sum(entry.newest is not None for entry in self._entries.values())

    def get(self, key: Key) -> Entry | None:
        """Return the entry of a job; None if the job does not exist."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.newest is not None else None

    def jobs(self) -> Iterator[tuple[Key, Entry]]:
        """Return an iterator over the keys and entries of all jobs, those that cannot be read included."""
        return ((key, entry) for key, entry in list(self._entries.items()) if entry.newest is not None)

    def changes_spec(self, job: TrainingJob | UnreadableJob) -> bool:
        """Return whether a user has created, changed or deleted a job since the version of it that is cached."""
        entry = self._entries.get(job.key)
        cached = entry.newest.metadata if entry is not None and entry.newest is not None else None
        given = job.metadata
        return cached is None or (cached.uid, cached.generation, cached.deletion_timestamp) != (
            given.uid,
            given.generation,
            given.deletion_timestamp,
        )

    def put_job(self, job: TrainingJob | UnreadableJob) -> Key:
        """Cache a job, unless a newer version of it is cached. Return its key."""
        key = job.key
        if job.metadata.uid in self._tombstones:
            return key
        entry = self._entries.setdefault(key, Entry())
        cached = entry.newest
        if cached is None or _version(job) >= _version(cached):
            if cached is not None and cached.metadata.uid != job.metadata.uid:  # deleted and created again
                entry.job = entry.accepted = entry.progress = entry.creation_error = None
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
            entry.job = entry.unreadable = entry.accepted = entry.progress = entry.creation_error = None
            self._drop_if_empty(key)

    def put_pod(self, pod: Pod) -> Key | None:
        """Cache a pod, unless a newer version of it is cached. Return the key of its job; None if it has none."""
        name = job_name_of(pod)
        metadata = pod["metadata"]
        if name is None or metadata["uid"] in self._tombstones:
            return None
        key = (metadata["namespace"], name)
        entry = self._entries.setdefault(key, Entry())
        cached = entry.pods.get(metadata["name"])
        if cached is None or _pod_version(pod) >= _pod_version(cached):
            entry.workers[metadata["name"]] = observe_pod(pod)
            entry.pods[metadata["name"]] = pod
        return key

    def remove_pod(self, pod: Pod) -> Key | None:
        """Remove a pod. Return the key of its job; None if it has none."""
        name, metadata = job_name_of(pod), pod["metadata"]
        self._record_deletion(metadata["uid"])
        if name is None:
            return None
        key = (metadata["namespace"], name)
        entry = self._entries.get(key)
        if entry is not None:
            cached = entry.pods.get(metadata["name"])
            if cached is not None and cached["metadata"]["uid"] == metadata["uid"]:
                del entry.pods[metadata["name"]], entry.workers[metadata["name"]]
                entry.launcher_states.pop(metadata["uid"], None)
                entry.unresponsive.discard(metadata["uid"])
            self._drop_if_empty(key)
        return key

    def workers(self, key: Key) -> tuple[WorkerPod, ...]:
        """Return the pods that a job owns; pods of a deleted job of the same name have another owner."""
        entry = self._entries[key]
        uid = entry.job.metadata.uid if entry.job else None
        return tuple(
            apply_launcher_state(w, entry.launcher_states.get(w.uid), unresponsive=w.uid in entry.unresponsive)
            for name, w in entry.workers.items()
            if owner_uid(entry.pods[name]) == uid
        )

    def replace(self, jobs: Iterable[TrainingJob | UnreadableJob], pods: Iterable[Pod], version: int) -> int:
        """Cache a complete list made at resource version `version`, and remove what it does not contain.

        Objects that were cached at a later version stay. Return how many objects were new, newer or gone, which is how
        many changes the watch streams have missed.
        """
        jobs, pods = list(jobs), list(pods)
        missed = sum(self._is_newer_job(job) for job in jobs) + sum(self._is_newer_pod(pod) for pod in pods)
        listed = {job.metadata.uid for job in jobs} | {pod["metadata"]["uid"] for pod in pods}
        for key, entry in list(self._entries.items()):
            for pod in list(entry.pods.values()):
                if pod["metadata"]["uid"] not in listed and _pod_version(pod) <= version:
                    self.remove_pod(pod)
                    missed += 1
            job = entry.newest
            if job and job.metadata.uid not in listed and _version(job) <= version:
                self.remove_job(key, job.metadata.uid)
                missed += 1
        for job in jobs:
            self.put_job(job)
        for pod in pods:
            self.put_pod(pod)
        self.primed = True
        return missed

    def _is_newer_job(self, job: TrainingJob | UnreadableJob) -> bool:
        if job.metadata.uid in self._tombstones:
            return False
        entry = self._entries.get(job.key)
        return entry is None or entry.newest is None or _version(entry.newest) < _version(job)

    def _is_newer_pod(self, pod: Pod) -> bool:
        name, metadata = job_name_of(pod), pod["metadata"]
        if name is None or metadata["uid"] in self._tombstones:
            return False
        entry = self._entries.get((metadata["namespace"], name))
        cached = entry.pods.get(metadata["name"]) if entry else None
        return cached is None or _pod_version(cached) < _pod_version(pod)

    def _record_deletion(self, uid: str) -> None:
        """Remember a deletion, so that a late response does not bring the object back."""
        self._tombstones[uid] = None
        while len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _drop_if_empty(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.newest is None and not entry.pods:
            del self._entries[key]


def owner_uid(body: Mapping[str, Any]) -> str | None:
    """Return the UID of the controller that owns an object; None if it has none."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            uid: str = reference["uid"]
            return uid
    return None


def _version(job: TrainingJob | UnreadableJob) -> int:
    """Return the resource version, a number that also grows from an object to its namesake (KEP-5504)."""
    return int(job.metadata.resource_version or 0)


def _pod_version(pod: Pod) -> int:
    return int(pod["metadata"].get("resourceVersion") or 0)
