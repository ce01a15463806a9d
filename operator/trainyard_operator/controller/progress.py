"""Progress of running jobs, read from the metrics page of rank 0. Workers hold no credentials and push nothing.

Every pod may serve anything, or nothing at all, so each job is read in a task of its own with limits of its own: bytes
per second, a time-out, and longer and longer waits while its page cannot be read.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus

import aiohttp
from yarl import URL

from trainyard.resource.status import ConditionType
from trainyard_operator.controller.backend import Backend
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry, PageProblem
from trainyard_operator.controller.http import pieces, pod_session
from trainyard_operator.controller.pod_calls import CallLimits, CallSchedule
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.pod_input.metrics_page import PageReader
from trainyard_operator.pod_input.text import clean_text

log = logging.getLogger(__name__)

_REQUESTS_IN_FLIGHT = 200
_REQUESTS_TO_SILENT_PODS = 20
_TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)
_BETWEEN_STARTS = 0.002
"""Seconds between the starts of two readings, each of which costs 0.3 ms and a look at its job: hundreds at the same
moment would keep all other jobs waiting. Pages of more than 2,500 jobs are read less often than every 5 s."""
_REPORTED_AFTER = 4
"""Failed readings in a row that are reported."""
_REFUSED_SECONDS = 600.0
"""How long nothing may listen on the port of a page before that is reported: a program may load for minutes."""
_PROBLEM_KEPT = timedelta(minutes=5)
"""How long a page must be free of problems before its job stops to report one."""


@dataclass(slots=True)
class ProgressPoller:
    """Reads the progress of every running job each `interval` seconds."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    clock: Callable[[], datetime]
    interval: float = 5.0
    _schedules: dict[Key, CallSchedule] = field(default_factory=dict)

    async def run(self) -> None:
        """Poll until cancelled."""
        limits = CallLimits(_REQUESTS_IN_FLIGHT, _REQUESTS_TO_SILENT_PODS)
        self._schedules.clear()
        async with pod_session(_TIMEOUT) as session, asyncio.TaskGroup() as group:
            while True:
                for key, schedule, entry, pod in self._due():
                    schedule.in_flight = True
                    group.create_task(self._read(session, limits, key, schedule, entry, pod))
                    await asyncio.sleep(_BETWEEN_STARTS)
                await asyncio.sleep(self.interval / 5)

    def _due(self) -> list[tuple[Key, CallSchedule, Entry, WorkerPod]]:
        """Return the pods whose pages are to be read now, and forget those that are gone."""
        now, due, schedules = asyncio.get_running_loop().time(), [], {}
        for key, entry in self.cache.jobs():
            if (pod := rank_zero(entry)) is None:
                continue
            schedule = self._schedules.get(key)
            # A job that is new, or has a new pod, is read soon, but not at the same moment as all others.
            if schedule is None or schedule.uid != pod.uid:
                schedule = CallSchedule(pod.uid, due=now + random.uniform(0, self.interval / 5))
            if entry.page_problem is not None and entry.page_problem.pod_uid != pod.uid:
                entry.page_problem = None
            schedules[key] = schedule
            if schedule.due <= now and not schedule.in_flight:
                due.append((key, schedule, entry, pod))
        self._schedules = schedules
        return due

    async def _read(
        self,
        session: aiohttp.ClientSession,
        limits: CallLimits,
        key: Key,
        schedule: CallSchedule,
        entry: Entry,
        pod: WorkerPod,
    ) -> None:
        """Read the page of one job once, and queue the job if its progress has changed. Whatever happens is its own."""
        job = entry.accepted_job
        url = self.backend.metrics_url(job, pod) if job is not None else None
        try:
            async with limits.limit_for(schedule):
                reader = await _read_page(session, url) if url is not None else PageReader()
        # Nothing listens on the port (yet).
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError) and url is not None:
                self._refuse(key, schedule, entry, pod, url)
            else:
                self._fail(key, schedule, entry, pod, f"cannot be read: {_described(error)}")
        # A page that cannot be read is not an error of the operator: status.progress.updatedAt shows its age.
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            self._fail(key, schedule, entry, pod, f"cannot be read: {_described(error)}")
        # A defect of the operator, which this job has found and the other jobs must not suffer from.
        except Exception:
            log.exception("%s/%s: unexpected error while its metrics page was read", *key)
            self._fail(key, schedule, entry, pod, "cannot be read: unexpected error of the operator, see its log")
        else:
            schedule.succeeded(max(self.interval, reader.seconds_of_budget))
            self._keep(key, entry, pod, reader)
        finally:
            schedule.in_flight = False

    def _keep(self, key: Key, entry: Entry, pod: WorkerPod, reader: PageReader) -> None:
        """Cache what a page has shown, unless the pod has been replaced meanwhile."""
        current = rank_zero(entry)
        if current is None or current.uid != pod.uid:
            return
        progress = reader.progress(attempt=pod.attempt, now=self.clock())
        changed = self._report(entry, pod, reader.problem)
        if progress is not None and progress != entry.progress:
            entry.progress = progress
            changed = True
        # A job that waits for a decision is looked at before those that report a step.
        if changed:
            self.queue.add_later(key)

    def _refuse(self, key: Key, schedule: CallSchedule, entry: Entry, pod: WorkerPod, url: URL) -> None:
        """Note that nothing listens on the port of a page, and report it if that is so for long."""
        problem = f"nothing listens on port {url.port} of the pod; is spec.metrics.port the port of the program?"
        if schedule.refused(self.interval) >= _REFUSED_SECONDS and self._report(entry, pod, problem):
            self.queue.add(key)

    def _fail(self, key: Key, schedule: CallSchedule, entry: Entry, pod: WorkerPod, problem: str) -> None:
        """Note that a page could not be read, and report it if that has happened several times in a row."""
        schedule.failed(self.interval)
        log.debug("%s/%s: the metrics page of pod %s %s", *key, pod.name, problem)
        if schedule.failures >= _REPORTED_AFTER and self._report(entry, pod, problem):
            self.queue.add(key)

    def _report(self, entry: Entry, pod: WorkerPod, problem: str) -> bool:
        """Update what the job reports about its page. Return whether that has changed.

        The first problem stays until there was none for a while: a page that changes must not cause a write each time.
        """
        now, known = self.clock(), entry.page_problem
        if problem and known is None:
            entry.page_problem = PageProblem(f"metrics page of pod {pod.name}: {problem}", pod.uid, now)
            return True
        if problem and known is not None:
            known.last_seen = now
        elif known is not None and now - known.last_seen > _PROBLEM_KEPT:
            entry.page_problem = None
            return True
        return False


def _described(error: Exception) -> str:
    return clean_text(f"{type(error).__name__}: {error}".removesuffix(": "), 200)


async def _read_page(session: aiohttp.ClientSession, url: URL) -> PageReader:
    """Read one page and return its content.

    Raises:
        aiohttp.ClientError, TimeoutError, OSError: there is no answer.
        ValueError: the answer is not a page.
    """
    reader = PageReader()
    async with session.get(url, allow_redirects=False) as response:
        if response.status != HTTPStatus.OK:
            raise ValueError(f"HTTP status {response.status} instead of 200")
        async for piece in pieces(response):
            if not reader.feed(piece):
                break
    return reader


def rank_zero(entry: Entry) -> WorkerPod | None:
    """Return the running pod with index 0 of a running job whose workers serve metrics; None without such a pod."""
    job = entry.accepted_job
    if job is None or job.managed_elsewhere or job.spec.metrics_endpoint is None:
        return None
    if not job.status.is_true(ConditionType.RUNNING):
        return None
    worker = entry.workers.get(job.pod_name(job.status.pod_attempt, 0))
    if worker is None or worker.owner_uid != job.metadata.uid:
        return None
    return worker if worker.state is WorkerState.RUNNING else None
