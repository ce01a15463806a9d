"""The watch of the jobs' pods, which continues where the list that has filled the cache ended.

kopf is not used for pods: it keeps a task and copies of the object for each of them. Here an event is one line of JSON,
of which only what a plan needs is kept.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from trainyard.protocol import constants
from trainyard_operator.controller.backoff import doubled
from trainyard_operator.controller.cache import Cache, CachedPod, Key
from trainyard_operator.controller.pod_events import deliver_pod
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError, KubeApi
from trainyard_operator.kube.paths import core_path

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_SECONDS: Final = 300.0
"""Shortest time after which the server is to end a watch, which then continues; the longest is twice that."""
SILENCE_SECONDS: Final = 150.0
"""Time after which a watch without any event counts as broken: API servers send a bookmark each minute."""
FIRST_BACKOFF: Final = 0.2
"""Seconds until a watch that has failed is opened again; then twice that, ..."""
MAX_BACKOFF: Final = 30.0
HEALTHY_AFTER: Final = 5.0
"""Seconds after which the failures of a watch before are forgotten."""
DENIED_SECONDS: Final = 30.0
"""Time after which a denial counts as a missing permission: an API server that starts denies everything at first."""
_EVENTS_IN_A_ROW = 50
"""Events after which other tasks of the operator get a turn."""


async def snapshot(
    api: KubeApi, path: str, selector: str, keep: Callable[[dict[str, Any]], T | None]
) -> tuple[list[T], int]:
    """Return what `keep` keeps of each object of a collection, and the resource version at which this is complete.

    The server streams the objects from its memory (KEP-3157). One that cannot do that is asked for pages.

    Raises:
        ApiError: the server rejected a request, or did not answer.
    """
    query = {
        "labelSelector": selector,
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": f"{SILENCE_SECONDS:.0f}",
    }
    kept: dict[str, T] = {}
    try:
        async with aclosing(api.watch(path, query, silence_seconds=SILENCE_SECONDS)) as events:
            async for event in events:
                metadata = event["object"]["metadata"]
                if event["type"] == "BOOKMARK":
                    if (metadata.get("annotations") or {}).get("k8s.io/initial-events-end") == "true":
                        return list(kept.values()), int(metadata["resourceVersion"])
                    continue
                found = keep(event["object"]) if event["type"] != "DELETED" else None
                if found is None:
                    kept.pop(metadata["uid"], None)
                else:
                    kept[metadata["uid"]] = found
    # The server does not know the parameters, or its feature WatchList is off.
    except ApiError as error:
        if error.code not in (400, 422):
            raise
    return await api.collect(path, selector, keep)


@dataclass(slots=True)
class PodWatch:
    """Delivers the changes of the pods of a namespace, or of all, to the cache and the queue."""

    api: KubeApi
    cache: Cache
    queue: WorkQueue[Key]
    namespace: str | None
    """None: all namespaces."""
    version: int | None
    """Resource version at which the cache is complete; None: the pods have to be listed."""
    delivered: int = 0
    """Events that were delivered, besides bookmarks: a watch with one of them was of use, however short it was."""
    _denied_at: float | None = None
    """Monotonic time of the first denial, if the server has done nothing but deny since."""

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            ApiError: the operator may not watch pods.
        """
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            started, delivered, retry_after = loop.time(), self.delivered, 0.0
            try:
                await self._follow()
                self._denied_at = None
            except ApiError as error:
                retry_after = error.retry_after
                self._check(error, loop.time())
            # Even a server that ends each watch at once is not asked in a loop.
            if loop.time() - started >= HEALTHY_AFTER:
                failures = 0
            else:
                failures = 1 if self.delivered > delivered else failures + 1
            wait = doubled(FIRST_BACKOFF, failures, MAX_BACKOFF) * random.uniform(0.5, 1.0) if failures else 0.0
            await asyncio.sleep(max(wait, min(retry_after, MAX_BACKOFF)))

    def _check(self, error: ApiError, now: float) -> None:
        """Decide how to continue after an error. `now`: monotonic time.

        Raises:
            ApiError: it is not one that passes.
        """
        denied_at, self._denied_at = self._denied_at, None
        # The server does not remember the changes since that version, or is behind it after a restore of its database.
        if error.code == 410 or error.has_cause("ResourceVersionTooLarge"):
            log.info("the watch of pods cannot continue; listing them again: %s", error)
            self.version = None
        # The server does not answer, or asks for patience.
        elif error.code in (0, 408, 429) or error.code >= 500:
            log.warning("the watch of pods has ended; opening it again: %s", error)
        # It has not read its roles yet, or the token is replaced just now.
        elif error.code in (401, 403) and now - (denied_at or now) < DENIED_SECONDS:
            self._denied_at = denied_at or now
            log.warning("the watch of pods is denied; trying again for a while: %s", error)
        else:
            raise error

    async def _follow(self) -> None:
        """List the pods if that is needed, then deliver changes until the server ends the watch."""
        path = core_path("pods", self.namespace)
        if self.version is None:
            pods, version = await snapshot(self.api, path, constants.LABEL_JOB, CachedPod.read)
            for key in self.cache.replace_pods(pods, version, self.namespace):
                self.queue.add(key)
            self.version = version
        query = {
            "labelSelector": constants.LABEL_JOB,
            "resourceVersion": str(self.version),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": f"{random.uniform(1, 2) * WATCH_SECONDS:.0f}",
        }
        count = 0
        async with aclosing(self.api.watch(path, query, silence_seconds=SILENCE_SECONDS)) as events:
            async for event in events:
                self._deliver(event)
                count += 1
                if count % _EVENTS_IN_A_ROW == 0:
                    await asyncio.sleep(0)

    def _deliver(self, event: dict[str, Any]) -> None:
        """Deliver one event, and remember its version."""
        pod = event["object"]
        if event["type"] != "BOOKMARK":
            self.delivered += 1
            self.cache.count_delivery(pods=1)
            try:
                deliver_pod(self.cache, self.queue, pod, gone=event["type"] == "DELETED")
            # A defect of the operator, which one pod has found and the other pods must not suffer from.
            except Exception:
                log.exception("unexpected error in an event of pod %s", pod.get("metadata", {}).get("name"))
        self.version = int(pod["metadata"]["resourceVersion"])


async def watch_pods(watches: Iterable[PodWatch]) -> None:
    """Run watches side by side until cancelled.

    Raises:
        ExceptionGroup: one of them failed with an ApiError; the others are cancelled.
    """
    async with asyncio.TaskGroup() as group:
        for watch in watches:
            group.create_task(watch.run())
