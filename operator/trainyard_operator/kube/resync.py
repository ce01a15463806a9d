"""Complete lists: they fill the cache at start, and later repair and detect what the watch streams have missed."""

import asyncio
import logging
from dataclasses import dataclass

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.unreadable import UnreadableJob, read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError, KubeApi
from trainyard_operator.kube.backend import core_path, jobs_path

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that a watch stream may lag behind a list."""


@dataclass(slots=True)
class Resync:
    """Lists all jobs and pods every `interval` seconds. `watch_lost` is set if a watch stream has missed changes."""

    api: KubeApi
    cache: Cache
    queue: WorkQueue[Key]
    namespace: str | None = None
    interval: float = 300.0
    watch_lost: bool = False

    async def prime(self) -> None:
        """Fill the empty cache; nothing may be reconciled before.

        Raises:
            ApiError: the server rejected a request (404: the CRD is not installed), or did not answer.
        """
        self.cache.replace(*await self._lists())
        for key, _ in self.cache.jobs():
            self.queue.add(key)

    async def run(self) -> None:
        """Check and repair the cache periodically, until cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            try:
                await self.check()
            except ApiError as error:
                log.warning("the complete list failed; next try in %.0f s: %s", self.interval, error)

    async def check(self) -> None:
        """List, give the watch streams time to deliver the same objects, then compare."""
        jobs, pods, version = await self._lists()
        await asyncio.sleep(GRACE)
        missed = self.cache.replace(jobs, pods, version)
        self.watch_lost = missed > 0
        if missed:
            log.error("the watch streams have missed %d changes in %.0f s; repaired from a list", missed, GRACE)
        for key, _ in self.cache.jobs():
            self.queue.add(key)

    async def _lists(self) -> tuple[list[TrainingJob | UnreadableJob], list[dict[str, object]], int]:
        bodies, version = await self.api.list(jobs_path(self.namespace))
        pods, later = await self.api.list(core_path("pods", self.namespace), constants.LABEL_JOB)
        # A job or pod that appears between the two lists is newer than `version`, so it stays in the cache.
        return [read_job(body) for body in bodies], pods, min(version, later)
