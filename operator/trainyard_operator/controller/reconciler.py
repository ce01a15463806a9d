"""The reconcile loop: take a job from the queue, observe it, plan, write the status, act."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason
from trainyard.time import utc_now
from trainyard_operator.controller.acceptance import accept, load_accepted
from trainyard_operator.controller.backend import Backend, BackendError, Gone, Refused, Stale, Unavailable
from trainyard_operator.controller.backoff import Backoff
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.launchers import LauncherCalls
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import (
    AcceptSpec,
    CreatePlaceholders,
    CreateWorkers,
    DeleteJob,
    DeleteWorkers,
    Plan,
    ReleaseWorkers,
    RestartInPlace,
)
from trainyard_operator.lifecycle.observation import CreationError, Observation
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.lifecycle.progress_writes import PROGRESS_INTERVAL
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.template import TemplateError

log = logging.getLogger(__name__)

CREATED_AT_ONCE = 500
"""Pods that one reconciliation creates at most (as in the Job controller): so a large group takes turns with other
jobs, and a suspension takes effect soon."""


class CreationFailed(Exception):
    """Pods could not be created; everything else about the job is reconciled as before.

    Args:
        error: why they could not.
        wait: seconds until the next try.
    """

    def __init__(self, error: BackendError, wait: float) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


STATUS_REFUSED_WAIT = 10.0
"""Seconds until a status is written again that the API server has refused."""


@dataclass(slots=True)
class Reconciler:
    """Brings every job of the cache to the state that its plan asks for."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    trainer_image: str
    clock: Callable[[], datetime] = utc_now
    progress_interval: timedelta = PROGRESS_INTERVAL
    on_reconciled: Callable[[float, str], None] = field(default=lambda _seconds, _outcome: None)
    """Called after each reconciliation with its seconds and its outcome: ok, the name of an error, or bug."""
    creation_backoff: Backoff[Key] = field(default_factory=Backoff)
    """Holds creations back after a failure, so that other events of a job lead to none."""
    launchers: LauncherCalls = field(init=False)

    def __post_init__(self) -> None:
        self.launchers = LauncherCalls(self.cache, self.queue, self.backend)

    async def run(self, parallel: int = 64) -> None:
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
            self._forget(key)
        # Pods could not be created: report that in the status, and create no others before the back-off has ended.
        except CreationFailed as failure:
            outcome = type(failure.error).__name__
            _log_failure(key, failure.error, failure.wait)
            self.queue.forget(key)
            self.queue.add(key)
        # A request failed: retry with back-off.
        except BackendError as error:
            outcome = type(error).__name__
            wait = self.queue.retry(key, at_least=error.retry_after, at_most=error.max_backoff)
            _log_failure(key, error, wait)
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
        newest = entry.newest if entry is not None else None
        # The job is gone or being deleted: the garbage collector deletes its children.
        if entry is None or newest is None or newest.metadata.deletion_timestamp:
            self._forget(key)
            return None
        # Another controller manages the job: it has no objects of this operator, and its status is not ours to write.
        if newest.managed_elsewhere:
            self._forget(key)
            return None
        # The operator cannot read the job: its pods stay, and it is reconciled again when it changes.
        if entry.unreadable is not None or entry.job is None:
            await self._report_unreadable(entry)
            return None
        live = entry.job
        accepted = entry.accepted = await load_accepted(self.backend, live, entry.accepted, self.trainer_image)
        job = live.replace(spec=accepted.spec)
        queries = self.launchers.query(key, job, entry)
        # The first answer of a launcher, or its absence, queues the job.
        if queries.must_wait:
            return None
        step = await self._plan(job, entry)
        # The status is stored before any action, so that no decision is lost or repeated.
        if step.status != job.status:
            stored = await self.backend.write_status(live, step.status)
            self.cache.put_job(stored)
            job = stored.replace(spec=accepted.spec)
        for event in step.events:
            log.info("%s/%s: %s: %s", *key, event.reason, event.message)
            await self.backend.record_event(job, event)
        more_after = await self._act(key, job, entry, step)
        # A status that is never stored completely differs from every plan: do not write it again at once.
        if job.status.is_true(ConditionType.STATUS_REFUSED) and step.status != job.status:
            return STATUS_REFUSED_WAIT
        timers = (step.wake_after, more_after, queries.wake_after)
        return min((seconds for seconds in timers if seconds is not None), default=None)

    def _forget(self, key: Key) -> None:
        """Forget the failures of a job that is gone."""
        self.queue.drop(key)
        self.creation_backoff.reset(key)

    async def _confirm_no_pods(self, job: TrainingJob) -> None:
        """Check that the job has no pods, since the cache may lag behind.

        Raises:
            Stale: there are pods, which are cached now.
        """
        # A job without an attempt never had any.
        if job.status.attempt == 0:
            return
        if pods := await self.backend.list_pods(job):
            for pod in pods:
                self.cache.put_pod(pod)
            raise Stale(f"{len(pods)} pods of a suspended job exist")

    async def _plan(self, job: TrainingJob, entry: Entry) -> Plan:
        """Return the plan for a job with its accepted spec; a job that starts is accepted first."""
        accepted = entry.accepted
        observation = Observation(
            job,
            self.cache.workers(job.key),
            self.clock(),
            entry.progress,
            entry.creation_error,
            page_problem=entry.page_problem.message if entry.page_problem is not None else None,
            progress_interval=self.progress_interval,
            changed_fields=accepted.changed if accepted else (),
            revision_problem=accepted.problem if accepted else None,
        )
        step = plan(observation)
        if acceptances := [action for action in step.actions if isinstance(action, AcceptSpec)]:
            acceptance = await accept(self.backend, job, acceptances[0], self.trainer_image)
            step = plan(replace(observation, acceptance=acceptance))
        # Others rely on the condition Suspended, so the API server confirms that no pod is left.
        if step.status.is_true(ConditionType.SUSPENDED) and not job.status.is_true(ConditionType.SUSPENDED):
            await self._confirm_no_pods(job)
        return step

    async def _report_unreadable(self, entry: Entry) -> None:
        """Write to the status of a job why the operator cannot read it."""
        job = entry.unreadable
        if job is None or entry.reported_problem == job.problem:
            return
        patch = job.status_patch(self.clock().replace(microsecond=0))
        # The status reports it already.
        if patch is None:
            return
        log.warning("%s/%s: %s: %s", *job.key, Reason.UNREADABLE, job.problem)
        # The API server stores no status of this object: an event reports the problem, once.
        if not await self.backend.report_unreadable(job, patch):
            await self.backend.record_event(job, Event("Warning", Reason.UNREADABLE, job.problem))
            entry.reported_problem = job.problem

    async def _act(self, key: Key, job: TrainingJob, entry: Entry, step: Plan) -> float | None:
        """Take the actions of a plan. Return the seconds after which more pods may be created (None: no more)."""
        more_after = None
        for action in step.actions:
            match action:
                case AcceptSpec():
                    raise AssertionError("a spec is accepted before a plan is carried out")
                case CreateWorkers():
                    more_after = await self._create(job.effective_job, entry, action)
                case CreatePlaceholders():
                    await self._create_placeholders(job, action)
                case DeleteWorkers():
                    await self.backend.delete_pods(job, action.workers, force=action.force)
                case DeleteJob():
                    log.info("%s/%s: deleting the job (spec.ttlSecondsAfterFinished)", *key)
                    await self.backend.delete_job(job)
                case RestartInPlace(workers=workers, attempt=attempt):
                    self.launchers.start_attempt(key, job, entry, workers, attempt)
                case ReleaseWorkers(workers=workers):
                    self.launchers.release(key, job, entry, workers)
        return more_after

    async def _create(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> float | None:
        """Create pods as far as the back-off allows, and remember for the status why one was not created.

        Return the seconds after which the others may be created; None if all exist.

        Raises:
            CreationFailed: a request failed; nothing is created before the back-off has ended.
        """
        # What was refused is not sent again because of an event, but at once when the user has changed the spec.
        version = (job.metadata.uid, job.metadata.generation, action.attempt)
        if wait := self.creation_backoff.remaining(job.key, version):
            return wait
        indexes = action.indexes[:CREATED_AT_ONCE]
        try:
            await self._create_group(job, entry, replace(action, indexes=indexes))
        except (Refused, Unavailable) as error:
            # One response that is missing means little, but a webhook may fail for hours.
            if isinstance(error, Refused) or self.creation_backoff.has_failed(job.key):
                reason = error.reason if isinstance(error, Refused) else Reason.WAITING_FOR_PODS
                entry.creation_error = CreationError(reason, str(error))
            wait = self.creation_backoff.fail(job.key, version, at_least=error.retry_after)
            raise CreationFailed(error, wait) from error
        entry.creation_error = None
        self.creation_backoff.reset(job.key)
        return 0.0 if len(indexes) < len(action.indexes) else None

    async def _create_group(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> None:
        """Create pods of the current attempt, after the API server has confirmed that no other attempt has any.

        The cache may lag behind, so the fence between attempts costs one list.

        Raises:
            Stale: pods of another attempt exist.
            Refused: no pod can be built from the template.
        """
        token = self.backend.launcher_token(job)
        secret = secret_name(job, token) if job.spec.restarts_in_place else None
        image = self.trainer_image
        try:
            pods = [build_pod(job, action.attempt, i, trainer_image=image, secret=secret) for i in action.indexes]
        except TemplateError as error:
            raise Refused(Reason.INVALID_SPEC, str(error)) from error
        others = await self.backend.list_pods(job, other_than=action.attempt)
        if others:
            for pod in others:
                self.cache.put_pod(pod)
            raise Stale(f"{len(others)} pods of another attempt exist")
        await self.backend.create(job, build_shared(job, token))
        # What the API server has accepted of this attempt shows how many more it will.
        accepted = sum(worker.attempt == action.attempt for worker in entry.workers.values())
        first = 1 if self.creation_backoff.has_failed(job.key) else max(1, accepted)
        for pod in await self.backend.create(job, pods, first=first):
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


def _log_failure(key: Key, error: BackendError, wait: float) -> None:
    log.log(error.log_level, "%s/%s: %s: %s; next try in %.2f s", *key, error.explanation, error, wait)
