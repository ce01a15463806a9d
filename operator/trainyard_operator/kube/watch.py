"""kopf's watch stream of jobs, which feeds the cache and the queue. kopf stores no state and writes no object.

Only `on.event` handlers are used: the other kinds write annotations or finalizers to users' objects.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import kopf

from trainyard.protocol import constants
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.pod_events import FIGURES_WAIT
from trainyard_operator.controller.unreadable import read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.job_session import Pauses, job_session
from trainyard_operator.kube.paths import jobs_path


def make_registry(cache: Cache, queue: WorkQueue[Key], listed: asyncio.Event) -> kopf.OperatorRegistry:
    """Return a kopf registry with the handler of jobs, and the login; `listed` is set when kopf has listed the jobs."""
    registry, pauses = kopf.OperatorRegistry(), Pauses()

    @kopf.on.login(registry=registry)
    async def log_in(**kwargs: Any) -> kopf.AiohttpSession | None:
        # kopf logs in again at once when the API server does not accept the credentials.
        await pauses.before("login")
        info = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        return job_session(info, pauses, listed) if info is not None else None

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    async def on_job(event: Any, **_: Any) -> None:
        cache.count_delivery(jobs=1)
        body = event["object"]
        key, uid, version = _identity(body["metadata"])
        # The type is None in a list.
        if event["type"] is not None:
            for namespace in (None, key[0]):
                pauses.was_of_use(jobs_path(namespace))
        if event["type"] == "DELETED":
            cache.remove_job(key, uid)
            queue.add(key)
        # The operator has written this version itself, and knows it: there may be more to do, but nothing to read.
        elif cache.knows_version(key, uid, version):
            queue.add_soon(key, FIGURES_WAIT)
        else:
            job = read_job(body)
            # What the user has changed may be what the job fails of: it ends the back-off.
            add = queue.add_now if cache.changes_spec(job) else queue.add
            add(cache.put_job(job))

    return registry


def _identity(metadata: Mapping[str, Any]) -> tuple[Key, str, str]:
    """Return key, UID and resource version of a job."""
    return (metadata["namespace"], metadata["name"]), metadata["uid"], metadata["resourceVersion"]


class _NoDiffs(kopf.DiffBaseStorage):
    """Computes no differences between versions of an object, which only handlers of other kinds need.

    kopf's own would copy each object of each event, and fail with one that is nested deeply.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return an empty object."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Return None: nothing is stored."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


def make_settings() -> kopf.OperatorSettings:
    """Return settings for plain watching: no events posted, no peering, short delays, many handlers in parallel."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 0.05
    settings.queueing.worker_limit = 100
    return settings
