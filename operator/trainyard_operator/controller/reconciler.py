"""The reconcile loop: take a job from the queue, observe it, plan, write the status, act."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason
from trainyard.time import utc_now
from trainyard_operator.controller.acceptance import accept, load_accepted
from trainyard_operator.controller.backend import Backend, BackendError, Gone, Refused, Stale
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry
from trainyard_operator.controller.launchers import LauncherCalls
from trainyard_operator.controller.pod_actions import DELETION_REPEATED_AFTER, CreationFailed, PodActions
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
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.lifecycle.progress_writes import PROGRESS_INTERVAL
from trainyard_operator.lifecycle.quiet_changes import QUIET_INTERVAL, is_quiet
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.manifests.gangs import gang_scheduler

log = logging.getLogger(__name__)

STATUS_REFUSED_WAIT = 10.0
"""Seconds until a status is written again that the API server has refused."""


@dataclass(slots=True)
class Reconciler:
    """Brings every job of the cache to the state that its plan asks for."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    trainer_image: str
    cluster_domain: str = ""
    """DNS domain of the cluster; empty if it is not known."""
    clock: Callable[[], datetime] = utc_now
    progress_interval: timedelta = PROGRESS_INTERVAL
    quiet_interval: timedelta = QUIET_INTERVAL
    """How long figures and messages may differ from the stored status before they are written."""
    on_reconciled: Callable[[float, str], None] = field(default=lambda _seconds, _outcome: None)
    """Called after each reconciliation with its seconds and its outcome: ok, the name of an error, or bug."""
    pods: PodActions = field(init=False)
    launchers: LauncherCalls = field(init=False)

    def __post_init__(self) -> None:
        self.pods = PodActions(self.cache, self.backend, self.trainer_image, self.cluster_domain)
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
        write_after = self._write_after(entry, job, step)
        if write_after == 0:
            stored = await self.backend.write_status(live, step.status)
            self.cache.put_job(stored)
            job = stored.replace(spec=accepted.spec)
            entry.quiet_since = None
        for event in step.events:
            log.info("%s/%s: %s: %s", *key, event.reason, event.message)
            await self.backend.record_event(job, event)
        more_after = await self._act(key, job, entry, step)
        # A status that is never stored completely differs from every plan: do not write it again at once.
        if job.status.is_true(ConditionType.STATUS_REFUSED) and step.status != job.status:
            return STATUS_REFUSED_WAIT
        timers = (step.wake_after, more_after, queries.wake_after, write_after or None)
        return min((seconds for seconds in timers if seconds is not None), default=None)

    def _write_after(self, entry: Entry, job: TrainingJob, step: Plan) -> float | None:
        """Return the seconds until the status of a plan is to be written; 0: now; None: it is stored already."""
        if step.status == job.status:
            entry.quiet_since = None
            return None
        # A decision, or what a user waits for.
        if step.events or step.wake_after == 0 or not is_quiet(job.status, step.status, self.progress_interval):
            return 0
        now = self.clock()
        entry.quiet_since = min(entry.quiet_since or now, now)
        return max(0.0, (entry.quiet_since + self.quiet_interval - now).total_seconds())

    def _forget(self, key: Key) -> None:
        """Forget the failures of a job that is gone."""
        self.queue.drop(key)
        self.pods.forget(key)

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
        # A group without pods could still count for its scheduler.
        if (scheduler := gang_scheduler(job)) is not None:
            with suppress(Refused):  # it is not there, or may not be deleted: the next attempt says so
                await self.backend.delete_groups(job, scheduler.api_version)

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
        # Others rely on the condition Suspended, so the API server confirms that no pod is left, and no group either.
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
        """Take the actions of a plan. Return the seconds after which one of them is to be continued or repeated."""
        more_after: float | None = None
        for action in step.actions:
            match action:
                case AcceptSpec():
                    raise AssertionError("a spec is accepted before a plan is carried out")
                case CreateWorkers():
                    more_after = await self.pods.create(job.effective_job, entry, action)
                case CreatePlaceholders():
                    await self.pods.create_placeholders(job, action)
                case DeleteWorkers():
                    await self.pods.delete(job, entry, action)
                    more_after = DELETION_REPEATED_AFTER if more_after is None else more_after
                case DeleteJob():
                    log.info("%s/%s: deleting the job (spec.ttlSecondsAfterFinished)", *key)
                    await self.backend.delete_job(job)
                case RestartInPlace(workers=workers, attempt=attempt):
                    self.launchers.start_attempt(key, job, entry, workers, attempt)
                case ReleaseWorkers(workers=workers):
                    self.launchers.release(key, job, entry, workers)
        return more_after


def _log_failure(key: Key, error: BackendError, wait: float) -> None:
    log.log(error.log_level, "%s/%s: %s: %s; next try in %.2f s", *key, error.explanation, error, wait)
