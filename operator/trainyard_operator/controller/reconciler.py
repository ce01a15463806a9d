"""The reconcile loop: take a job from the queue, observe it, plan, write the status, act."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.time import utc_now
from trainyard_operator.controller.backend import Backend, BackendError, Gone, Refused, Stale
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.launchers import LauncherCalls
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import (
    CreatePlaceholders,
    CreateWorkers,
    DeleteWorkers,
    Plan,
    ReleaseWorkers,
    RestartInPlace,
)
from trainyard_operator.lifecycle.observation import CreationError, Observation, Pod
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reconciler:
    """Brings every job of the cache to the state that its plan asks for."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    trainer_image: str
    clock: Callable[[], datetime] = utc_now
    on_reconciled: Callable[[float, str], None] = field(default=lambda _seconds, _outcome: None)
    """Called after each reconciliation with its seconds and its outcome: ok, the name of an error, or bug."""
    launchers: LauncherCalls = field(init=False)

    def __post_init__(self) -> None:
        self.launchers = LauncherCalls(self.cache, self.queue, self.backend)

    async def run(self, parallel: int = 16) -> None:
        """Reconcile until cancelled, up to `parallel` jobs at a time."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(self._work())
        finally:
            await self.launchers.close()

    async def _work(self) -> None:
        """Process keys of the queue, one at a time."""
        while True:
            key = await self.queue.get()
            try:
                await self._process(key)
            finally:
                self.queue.done(key)

    async def _process(self, key: Key) -> None:
        """Reconcile one job and schedule the next reconciliation. No error of one job ends the loop."""
        loop = asyncio.get_running_loop()
        started, outcome = loop.time(), "ok"
        try:
            wake_after = await self.reconcile(key)
        # The job does not exist any more: there is nothing to retry.
        except Gone:
            self.queue.drop(key)
        # A request failed: retry with back-off.
        except BackendError as error:
            outcome = type(error).__name__
            wait = self.queue.retry(key)
            log.log(error.log_level, "%s/%s: %s: %s; next try in %.2f s", *key, error.explanation, error, wait)
        # The operator has a bug: log the traceback, and retry with back-off.
        except Exception:
            outcome = "bug"
            wait = self.queue.retry(key)
            log.exception("%s/%s: unexpected error; next try in %.2f s", *key, wait)
        # The plan was carried out: set its timer.
        else:
            self.queue.forget(key)
            if wake_after is not None:
                self.queue.add_after(key, wake_after)
        self.on_reconciled(loop.time() - started, outcome)

    async def reconcile(self, key: Key) -> float | None:
        """Observe, plan, apply. Return the seconds until the next reconciliation (None: when something changes).

        Raises:
            BackendError: a request failed.
        """
        entry = self.cache.get(key)
        # The job is gone or being deleted: the garbage collector deletes its children.
        if entry is None or entry.job is None or entry.job.metadata.deletion_timestamp:
            self.queue.drop(key)
            return None
        job = entry.job
        outlook = self.launchers.query(key, job, entry)
        # The first answer of a launcher, or its absence, queues the job.
        if outlook.must_wait:
            return None
        problem = entry.page_problem.message if entry.page_problem is not None else None
        observation = Observation(
            job, self.cache.workers(key), self.clock(), entry.progress, entry.creation_error, problem
        )
        step = plan(observation)
        # The status is stored before any action, so that no decision is lost or repeated.
        if step.status != job.status:
            job = await self.backend.write_status(job, step.status)
            self.cache.put_job(job)
        for event in step.events:
            log.info("%s/%s: %s: %s", *key, event.reason, event.message)
            await self.backend.record_event(job, event)
        await self._act(key, job, entry, step)
        return min((s for s in (step.wake_after, outlook.wake_after) if s is not None), default=None)

    async def _act(self, key: Key, job: TrainingJob, entry: Entry, step: Plan) -> None:
        for action in step.actions:
            match action:
                case CreateWorkers():
                    await self._create(job.effective_job, entry, action)
                case CreatePlaceholders():
                    await self._create_placeholders(job, action)
                case DeleteWorkers():
                    await self.backend.delete_pods(job, action.workers, force=action.force)
                case RestartInPlace(workers=workers, attempt=attempt):
                    self.launchers.start_attempt(key, job, entry, workers, attempt)
                case ReleaseWorkers(workers=workers):
                    self.launchers.release(key, job, entry, workers)

    async def _create(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> None:
        """Create pods, and remember for the status whether the API server refused one."""
        try:
            await self._create_group(job, action)
        except Refused as error:
            entry.creation_error = CreationError(error.reason, str(error))
            raise
        entry.creation_error = None

    async def _create_group(self, job: TrainingJob, action: CreateWorkers) -> None:
        """Create pods of the current attempt, after the API server has confirmed that no other attempt has any.

        The cache may lag behind, so the fence between attempts costs one list per group.

        Raises:
            Stale: pods of another attempt exist.
        """
        others = [p for p in await self.backend.list_pods(job) if _attempt(p) != action.attempt]
        if others:
            for pod in others:
                self.cache.put_pod(pod)
            raise Stale(f"{len(others)} pods of another attempt exist")
        token = self.backend.launcher_token(job)
        await self.backend.create(job, build_shared(job, token))
        secret = secret_name(job, token) if job.spec.restarts_in_place else None
        pods = [
            build_pod(job, action.attempt, i, trainer_image=self.trainer_image, secret=secret) for i in action.indexes
        ]
        for pod in await self.backend.create(job, pods):
            self.cache.put_pod(pod)

    async def _create_placeholders(self, job: TrainingJob, action: CreatePlaceholders) -> None:
        """Create placeholders. If one is refused, by a quota for example, there is no capacity for it."""
        sized = job.effective_job
        manifests = [
            build_placeholder(sized, action.pod_attempt, index, trainer_image=self.trainer_image)
            for index in action.indexes
        ]
        try:
            for pod in await self.backend.create(sized, manifests):
                self.cache.put_pod(pod)
        except Refused as error:
            log.info("%s/%s: no capacity for more workers: %s", *job.key, error)


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"]["labels"][constants.LABEL_ATTEMPT])
