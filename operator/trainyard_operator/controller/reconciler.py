"""The reconcile loop: take a job from the queue, observe it, plan, write the status, act."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from trainyard.protocol import constants
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason
from trainyard.time import utc_now
from trainyard_operator.controller.acceptance import accept, load_accepted
from trainyard_operator.controller.backend import Backend, BackendError, Gone, Refused, Stale
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import (
    AcceptSpec,
    CreatePlaceholders,
    CreateWorkers,
    DeleteWorkers,
    Plan,
    ReleaseWorkers,
    RestartInPlace,
)
from trainyard_operator.lifecycle.observation import CreationError, Observation, Pod, WorkerPod, WorkerState
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod

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
    clock: Callable[[], datetime] = utc_now
    on_reconciled: Callable[[float, str], None] = field(default=lambda _seconds, _outcome: None)
    """Called after each reconciliation with its seconds and its outcome: ok, the name of an error, or bug."""

    async def run(self, parallel: int = 16) -> None:
        """Reconcile until cancelled, up to `parallel` jobs at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(self._work())

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
        newest = entry.newest if entry is not None else None
        # The job is gone or being deleted: the garbage collector deletes its children.
        if entry is None or newest is None or newest.metadata.deletion_timestamp:
            self.queue.drop(key)
            return None
        # The operator cannot read the job: its pods stay, and it is reconciled again when it changes.
        if entry.unreadable is not None or entry.job is None:
            await self._report_unreadable(entry)
            return None
        accepted = entry.accepted = await load_accepted(self.backend, entry.job, entry.accepted, self.trainer_image)
        job = entry.job.replace(spec=accepted.spec)
        await self._query_launchers(job, entry, key)
        step = await self._plan(job, entry)
        # The status is stored before any action, so that no decision is lost or repeated.
        if step.status != job.status:
            stored = await self.backend.write_status(job, step.status)
            self.cache.put_job(stored)
            job = stored.replace(spec=accepted.spec)
        for event in step.events:
            log.info("%s/%s: %s: %s", *key, event.reason, event.message)
            await self.backend.record_event(job, event)
        await self._act(job, entry, step)
        # A status that is never stored completely differs from every plan: do not write it again at once.
        if job.status.is_true(ConditionType.STATUS_REFUSED) and step.status != job.status:
            return STATUS_REFUSED_WAIT
        return step.wake_after

    async def _plan(self, job: TrainingJob, entry: Entry) -> Plan:
        """Return the plan for a job with its accepted spec; a job that starts is accepted first."""
        accepted = entry.accepted
        observation = Observation(
            job,
            self.cache.workers(job.key),
            self.clock(),
            entry.progress,
            entry.creation_error,
            changed_fields=accepted.changed if accepted else (),
            revision_problem=accepted.problem if accepted else None,
        )
        step = plan(observation)
        acceptances = [action for action in step.actions if isinstance(action, AcceptSpec)]
        if not acceptances:
            return step
        acceptance = await accept(self.backend, job, acceptances[0], self.trainer_image)
        return plan(replace(observation, acceptance=acceptance))

    async def _report_unreadable(self, entry: Entry) -> None:
        """Write to the status of a job why the operator cannot read it."""
        job = entry.unreadable
        if job is not None and (patch := job.status_patch(self.clock().replace(microsecond=0))) is not None:
            log.warning("%s/%s: %s: %s", *job.key, Reason.UNREADABLE, job.problem)
            await self.backend.report_unreadable(job, patch)

    async def _query_launchers(self, job: TrainingJob, entry: Entry, key: Key) -> None:
        """Query the launchers of pods whose state the API server does not show.

        A pod that is not ready may have finished its attempt and await a restart. And a new operator does not know
        which attempt a pod runs that was created for an earlier one. Neither is possible while a group starts:
        launchers await a restart only after a step, and no step is made before all workers run.
        """
        status = job.status
        if not (status.is_true(ConditionType.RUNNING) or status.pod_attempt_override is not None or status.finished):
            return
        unclear = [
            w
            for w in self.cache.workers(key)
            if w.has_launcher and not w.terminating and (w.state is WorkerState.RUNNING or w.awaiting_restart)
            if not w.ready or w.running_attempt < status.attempt
        ]
        if unclear:
            states = await self.backend.get_launcher_states(job, [entry.pods[w.name] for w in unclear])
            entry.launcher_states.update({w.uid: state for w, state in zip(unclear, states, strict=True) if state})

    async def _act(self, job: TrainingJob, entry: Entry, step: Plan) -> None:
        for action in step.actions:
            match action:
                case AcceptSpec():
                    raise AssertionError("a spec is accepted before a plan is carried out")
                case CreateWorkers():
                    await self._create(job.effective_job, entry, action)
                case CreatePlaceholders():
                    await self._create_placeholders(job, action)
                case DeleteWorkers():
                    await self.backend.delete_pods(job, action.workers, force=action.force)
                case RestartInPlace(workers=workers, attempt=attempt):
                    pods = [entry.pods[w.name] for w in workers]
                    _note_states(entry, workers, await self.backend.start_attempt(job, pods, attempt))
                case ReleaseWorkers(workers=workers):
                    pods = [entry.pods[w.name] for w in workers]
                    _note_states(entry, workers, await self.backend.release(job, pods))

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


def _note_states(entry: Entry, workers: tuple[WorkerPod, ...], states: list[PodState | None]) -> None:
    """Remember the launchers' answers to a request, and which launchers rejected or did not answer it."""
    for worker, state in zip(workers, states, strict=True):
        if state is None:
            entry.unresponsive.add(worker.uid)
        else:
            entry.launcher_states[worker.uid] = state


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"]["labels"][constants.LABEL_ATTEMPT])
