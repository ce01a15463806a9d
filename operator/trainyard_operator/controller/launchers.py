"""Queries and requests to the launchers in pods, outside of the reconcile loop: it never waits for a pod.

Each call is a task of its own. Its answer goes into the cache and queues the job again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType
from trainyard_operator.controller.backend import Backend
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry
from trainyard_operator.controller.pod_calls import SILENT_AFTER, CallLimits, CallSchedule, backoff
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState

log = logging.getLogger(__name__)

_CALLS_IN_FLIGHT = 400
_CALLS_TO_SILENT_PODS = 40
_FIRST_WAIT = 1.0
"""Seconds from a query until the next one of the same pod, if nothing happens in between; then twice the time, ..."""


class QueryState(NamedTuple):
    """What a reconciliation has to know about the queries of its job."""

    must_wait: bool
    """A launcher is being queried for the first time, so that a plan would be made without the state of its pod."""
    wake_after: float | None
    """Seconds until a launcher is to be queried again; None: when something changes."""


@dataclass(slots=True)
class LauncherCalls:
    """The calls to all launchers."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    _limits: CallLimits = field(default_factory=lambda: CallLimits(_CALLS_IN_FLIGHT, _CALLS_TO_SILENT_PODS))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def query(self, key: Key, job: TrainingJob, entry: Entry) -> QueryState:
        """Start to query the launchers of pods whose state the API server does not show.

        A pod that is not ready may have finished its attempt and await a restart. And a new operator does not know
        which attempt a pod runs that was created for an earlier one. Neither is possible while a group starts:
        launchers await a restart only after a step, and no step is made before all workers run.
        """
        status, now, must_wait = job.status, asyncio.get_running_loop().time(), False
        if not (status.is_true(ConditionType.RUNNING) or status.pod_attempt_override is not None or status.finished):
            return QueryState(False, None)
        waits = []
        for worker in self.cache.workers(key):
            if not _is_unclear(worker, status.attempt):
                # A pod is ready because its launcher answers: as soon as it is not ready any more it is queried again.
                if worker.ready and (known := entry.launcher_schedules.get(worker.uid)) is not None:
                    known.failures = 0
                continue
            schedule = entry.launcher_schedules.setdefault(worker.uid, CallSchedule(worker.uid))
            # The pod has changed, and its launcher answers: what it answered before the change is outdated.
            if schedule.version != worker.resource_version and schedule.failures < SILENT_AFTER:
                schedule.due, schedule.calls = 0.0, 0
            if schedule.due <= now and not schedule.in_flight:
                schedule.in_flight, schedule.version = True, worker.resource_version
                self._start(self._query(key, job, entry, worker, schedule))
            must_wait |= not schedule.completed
            if not schedule.in_flight:
                waits.append(schedule.due - now)
        return QueryState(must_wait, min(waits, default=None))

    def start_attempt(
        self, key: Key, job: TrainingJob, entry: Entry, workers: Iterable[WorkerPod], attempt: int
    ) -> None:
        """Start to request from launchers that they start an attempt."""

        async def call(worker: WorkerPod) -> PodState | None:
            return await self.backend.start_attempt(job, worker, attempt)

        self._request(key, entry, workers, f"attempt {attempt}", call)

    def release(self, key: Key, job: TrainingJob, entry: Entry, workers: Iterable[WorkerPod]) -> None:
        """Start to request from launchers that they exit."""

        async def call(worker: WorkerPod) -> PodState | None:
            return await self.backend.release(job, worker)

        self._request(key, entry, workers, "exit", call)

    async def settle(self) -> None:
        """Wait until no call is in flight."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Cancel all calls."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, call: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _query(self, key: Key, job: TrainingJob, entry: Entry, worker: WorkerPod, schedule: CallSchedule) -> None:
        """Query one launcher once, and queue the job."""
        try:
            async with self._limits.limit_for(schedule):
                state = await self._call(key, self.backend.get_launcher_state(job, worker))
            if state is None:
                schedule.failed(_FIRST_WAIT)
            else:
                schedule.calls = 1 if _note(entry, worker, state) else schedule.calls + 1
                schedule.succeeded(backoff(_FIRST_WAIT, schedule.calls))
        finally:
            schedule.in_flight = False
        self.queue.add(key)

    def _request(
        self,
        key: Key,
        entry: Entry,
        workers: Iterable[WorkerPod],
        request: str,
        call: Callable[[WorkerPod], Awaitable[PodState | None]],
    ) -> None:
        """Start a request to each launcher that is not busy with an earlier one, and may be asked again."""
        for worker in workers:
            schedule = entry.launcher_schedules.setdefault(worker.uid, CallSchedule(worker.uid))
            if schedule.requested:
                continue
            if wait := schedule.may_request(request, _FIRST_WAIT):
                self.queue.add_after(key, wait)
            else:
                schedule.requested = True
                self._start(self._request_one(key, entry, worker, schedule, call))

    async def _request_one(
        self,
        key: Key,
        entry: Entry,
        worker: WorkerPod,
        schedule: CallSchedule,
        call: Callable[[WorkerPod], Awaitable[PodState | None]],
    ) -> None:
        """Send a request to one launcher; queue the job if that has changed what is known of the pod."""
        try:
            async with self._limits.limit_for(schedule):
                state = await self._call(key, call(worker))
        finally:
            schedule.requested = False
        if state is None:
            entry.unresponsive.add(worker.uid)
            self.queue.add(key)
        elif _note(entry, worker, state):
            self.queue.add(key)

    async def _call(self, key: Key, answer: Awaitable[PodState | None]) -> PodState | None:
        """Return the answer of a launcher; None without one."""
        try:
            return await answer
        # A defect of the operator, which this job has found and the other jobs must not suffer from.
        except Exception:
            log.exception("%s/%s: unexpected error in a call to a launcher", *key)
            return None


def _is_unclear(worker: WorkerPod, attempt: int) -> bool:
    """Return whether only its launcher knows the state of a pod."""
    alive = worker.state is WorkerState.RUNNING or worker.awaiting_restart
    unknown = not worker.ready or worker.running_attempt < attempt
    return worker.has_launcher and not worker.terminating and alive and unknown


def _note(entry: Entry, worker: WorkerPod, state: PodState) -> bool:
    """Cache the state of a launcher. Return whether it is news."""
    known = entry.launcher_states.get(worker.uid)
    # The pod is gone, or a request has overtaken this query: it has started a later attempt meanwhile.
    if worker.uid not in entry.launcher_schedules or (known is not None and state.attempt < known.attempt):
        return False
    entry.launcher_states[worker.uid] = state
    return state != known
