"""What is known of the world: every job with its pods and its progress, fed by watch streams and by answers.

A watch stream lags behind what the operator itself has just written, and after a break it may have lost deletions.
So answers to the operator's own writes go in here too, an older version never replaces a newer one, and a
complete list replaces everything from time to time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard_operator.lifecycle.observation import Pod, Trouble, Worker, job_name_of, observe_worker, with_state

Key = tuple[str, str]
"""Namespace and name of a job."""

_TOMBSTONES = 10_000


@dataclass(slots=True)
class Entry:
    """All that is known of one job."""

    job: TrainingJob | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    progress: Progress | None = None
    """What rank 0's metrics page showed when it was last read."""
    trouble: Trouble | None = None
    states: dict[str, PodState] = field(default_factory=dict)
    """What the launchers in the pods have said last, by the pods' UIDs."""
    deaf: set[str] = field(default_factory=set)
    """UIDs of pods that have not followed an order."""


class Cache:
    """Jobs and their pods, by namespace and name of the job."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self.primed = False
        """Whether a complete list has been read, so that what is not here does not exist."""

    def __len__(self) -> int:
        return sum(entry.job is not None for entry in self._entries.values())

    def get(self, key: Key) -> Entry | None:
        """What is known of a job; None if the job does not exist."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.job is not None else None

    def jobs(self) -> Iterator[tuple[Key, Entry]]:
        """All jobs."""
        return ((key, entry) for key, entry in list(self._entries.items()) if entry.job is not None)

    def put_job(self, job: TrainingJob) -> Key:
        """Take in a job, unless a newer version of it is known."""
        key = job.key
        if job.metadata.uid in self._tombstones:
            return key
        entry = self._entries.setdefault(key, Entry())
        known = entry.job
        if known is None or _version(job) >= _version(known):
            if known is not None and known.metadata.uid != job.metadata.uid:  # deleted and made anew
                entry.progress = entry.trouble = None
            entry.job = job
        return key

    def remove_job(self, key: Key, uid: str) -> None:
        """Forget a job; its pods stay until they are gone too."""
        self._bury(uid)
        entry = self._entries.get(key)
        if entry is not None and entry.job is not None and entry.job.metadata.uid == uid:
            entry.job = entry.progress = entry.trouble = None
            self._tidy(key)

    def put_pod(self, pod: Pod) -> Key | None:
        """Take in a pod, unless a newer version of it is known. Returns the key of its job, if it is of one."""
        name = job_name_of(pod)
        metadata = pod["metadata"]
        if name is None or metadata["uid"] in self._tombstones:
            return None
        key = (metadata["namespace"], name)
        entry = self._entries.setdefault(key, Entry())
        known = entry.pods.get(metadata["name"])
        if known is None or _pod_version(pod) >= _pod_version(known):
            entry.workers[metadata["name"]] = observe_worker(pod)
            entry.pods[metadata["name"]] = pod
        return key

    def remove_pod(self, pod: Pod) -> Key | None:
        """Forget a pod. Returns the key of its job, if it is of one."""
        name, metadata = job_name_of(pod), pod["metadata"]
        self._bury(metadata["uid"])
        if name is None:
            return None
        key = (metadata["namespace"], name)
        entry = self._entries.get(key)
        if entry is not None:
            known = entry.pods.get(metadata["name"])
            if known is not None and known["metadata"]["uid"] == metadata["uid"]:
                del entry.pods[metadata["name"]], entry.workers[metadata["name"]]
                entry.states.pop(metadata["uid"], None)
                entry.deaf.discard(metadata["uid"])
            self._tidy(key)
        return key

    def workers(self, key: Key) -> tuple[Worker, ...]:
        """The pods of a job that belong to it: a namesake's leftovers, of another owner, do not count."""
        entry = self._entries[key]
        uid = entry.job.metadata.uid if entry.job else None
        return tuple(
            with_state(w, entry.states.get(w.uid), deaf=w.uid in entry.deaf)
            for name, w in entry.workers.items()
            if owner_uid(entry.pods[name]) == uid
        )

    def replace(self, jobs: Iterable[TrainingJob], pods: Iterable[Pod], version: int) -> int:
        """Take in a complete list made at resource version `version`, and drop what it does not hold.

        What has been seen at a later version stays. Returns how many objects were new, newer or gone: how much the
        watch streams had missed.
        """
        jobs, pods = list(jobs), list(pods)
        missed = sum(self._is_news_job(job) for job in jobs) + sum(self._is_news_pod(pod) for pod in pods)
        listed = {job.metadata.uid for job in jobs} | {pod["metadata"]["uid"] for pod in pods}
        for key, entry in list(self._entries.items()):
            for pod in list(entry.pods.values()):
                if pod["metadata"]["uid"] not in listed and _pod_version(pod) <= version:
                    self.remove_pod(pod)
                    missed += 1
            if entry.job and entry.job.metadata.uid not in listed and _version(entry.job) <= version:
                self.remove_job(key, entry.job.metadata.uid)
                missed += 1
        for job in jobs:
            self.put_job(job)
        for pod in pods:
            self.put_pod(pod)
        self.primed = True
        return missed

    def _is_news_job(self, job: TrainingJob) -> bool:
        if job.metadata.uid in self._tombstones:
            return False
        entry = self._entries.get(job.key)
        return entry is None or entry.job is None or _version(entry.job) < _version(job)

    def _is_news_pod(self, pod: Pod) -> bool:
        name, metadata = job_name_of(pod), pod["metadata"]
        if name is None or metadata["uid"] in self._tombstones:
            return False
        entry = self._entries.get((metadata["namespace"], name))
        known = entry.pods.get(metadata["name"]) if entry else None
        return known is None or _pod_version(known) < _pod_version(pod)

    def _bury(self, uid: str) -> None:
        """Remember a deletion, so that a late answer does not bring the object back."""
        self._tombstones[uid] = None
        while len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _tidy(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.job is None and not entry.pods:
            del self._entries[key]


def owner_uid(body: Mapping[str, Any]) -> str | None:
    """UID of the controller that owns an object."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            uid: str = reference["uid"]
            return uid
    return None


def _version(job: TrainingJob) -> int:
    """Resource versions are numbers that grow, from an object to its namesake too (Kubernetes enhancement 5504)."""
    return int(job.metadata.resource_version or 0)


def _pod_version(pod: Pod) -> int:
    return int(pod["metadata"].get("resourceVersion") or 0)
