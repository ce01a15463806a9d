"""Complete lists: they fill the cache at start, and later repair and detect what the watch streams have missed."""

import asyncio
import logging
from dataclasses import dataclass

from trainyard.protocol import constants
from trainyard_operator.controller.cache import AnyJob, ByKind, Cache, CachedPod, Key
from trainyard_operator.controller.unreadable import read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError, KubeApi
from trainyard_operator.kube.paths import core_path, jobs_path
from trainyard_operator.kube.pod_watch import snapshot

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds from a list until it is compared with the cache, and between two comparisons."""
MAX_LAG = 60.0
"""Seconds that a watch stream may lag behind a list."""
LIST_RETRY = 2.0
"""Seconds between two attempts to list the jobs, also to fill the cache."""


@dataclass(slots=True)
class Resync:
    """Lists all jobs and pods every `interval` seconds. `watch_lost` is set if a watch stream delivers nothing."""

    api: KubeApi
    cache: Cache
    queue: WorkQueue[Key]
    namespaces: tuple[str, ...] = ()
    """Namespaces whose objects are listed; empty: all."""
    interval: float = 300.0
    watch_lost: bool = False

    async def prime(self) -> int:
        """Fill the empty cache; nothing may be reconciled before. Return the resource version at which it is complete.

        Raises:
            ApiError: the server rejected a request (404: the CRD is not installed), or did not answer.
        """
        jobs, pods, version = await self._lists()
        self.cache.replace(jobs, pods, version)
        self._queue_all()
        return version

    async def run(self) -> None:
        """Check and repair the cache periodically, until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.check()
            except ApiError as error:
                log.warning("the complete list failed; next try in %.0f s: %s", self.interval, error)

    async def check(self) -> None:
        """List, give the watch streams time to deliver the same objects, then repair what they have not delivered.

        A stream that still delivers something is not lost, however late it is: the operator is busy, and a restart
        would only make it busier.
        """
        jobs, pods, version = await self._lists()
        before, waited = self.cache.delivered, 0.0
        missed = ByKind(0, 0)
        while waited < MAX_LAG:
            await asyncio.sleep(GRACE)
            waited += GRACE
            missed = self.cache.count_missed(jobs, pods, version)
            if not any(missed):
                break
        delivered = self.cache.delivered
        self.cache.replace(jobs, pods, version)
        self.watch_lost = bool(
            (missed.jobs and delivered.jobs == before.jobs) or (missed.pods and delivered.pods == before.pods)
        )
        if any(missed):
            state = "a stream has stalled" if self.watch_lost else "they are late"
            text = (
                "the watch streams have missed %d changes of jobs and %d of pods in %.0f s (%s); repaired from a list"
            )
            log.error(text, *missed, waited, state)
        self._queue_all()

    def _queue_all(self) -> None:
        """Queue all jobs, after those that something has happened to."""
        for key, _ in self.cache.jobs():
            self.queue.add_later(key)

    async def follow(self, listed: asyncio.Event) -> None:
        """List the jobs whenever `listed` is set, and remove those that are gone, until cancelled.

        kopf has listed them then, since its watch could not continue. It does not name those deleted meanwhile.
        """
        while True:
            await listed.wait()
            listed.clear()
            try:
                await self._list_jobs()
            except ApiError as error:
                log.warning("cannot list TrainingJobs: %s; next try in %.0f s", error, LIST_RETRY)
                listed.set()
                await asyncio.sleep(LIST_RETRY)

    async def _list_jobs(self) -> None:
        for namespace in self.namespaces or (None,):
            found: list[AnyJob]
            found, version = await self.api.collect(jobs_path(namespace), "", read_job)
            for key in self.cache.replace_jobs(found, version, namespace):
                self.queue.add(key)

    async def _lists(self) -> tuple[list[AnyJob], list[CachedPod], int]:
        jobs: list[AnyJob] = []
        pods: list[CachedPod] = []
        versions = []
        for namespace in self.namespaces or (None,):
            found: list[AnyJob]
            found, version = await self.api.collect(jobs_path(namespace), "", read_job)
            path = core_path("pods", namespace)
            of_jobs, later = await snapshot(self.api, path, constants.LABEL_JOB, CachedPod.read)
            jobs += found
            pods += of_jobs
            versions += [version, later]
        # A job or pod that appears between two lists is newer than the first of them, so it stays in the cache.
        return jobs, pods, min(versions)
