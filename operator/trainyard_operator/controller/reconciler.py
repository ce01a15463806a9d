"""The loop: take a job from the queue, observe it, plan, write the status down, act."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType
from trainyard_operator.controller.backend import Backend, BackendError, Gone, Refused, Stale, Unavailable
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import CreatePlaceholders, CreateWorkers, DeleteWorkers, OrderWorkers, Plan
from trainyard_operator.lifecycle.observation import Observation, Pod, Trouble, WorkerState
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod

log = logging.getLogger(__name__)

VERDICTS: dict[type[BackendError], tuple[int, str]] = {
    Stale: (logging.DEBUG, "the view was out of date; looking again"),
    Unavailable: (logging.WARNING, "the API server did not answer; trying again"),
    Refused: (logging.WARNING, "a child was refused; trying again, with the reason in the status"),
}
"""What each error means: how loud to say it, and what. All of them lead to another look, with backoff."""


def utc_now() -> datetime:
    """The time, as the operator has it."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Reconciler:
    """Keeps every job of the cache where its plan wants it."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    trainer_image: str
    clock: Callable[[], datetime] = utc_now
    observe_seconds: Callable[[float, str], None] = field(default=lambda _seconds, _outcome: None)
    """Called after each look with its duration and its outcome (ok, or the name of an error), for metrics."""

    async def run(self, parallel: int = 16) -> None:
        """Work until cancelled, on up to `parallel` jobs at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._look(key)
            finally:
                self.queue.done(key)

    async def _look(self, key: Key) -> None:
        """One look at one job; whatever goes wrong leads to another look, never to a dead loop."""
        loop = asyncio.get_running_loop()
        started, outcome = loop.time(), "ok"
        try:
            wake_after = await self.reconcile(key)
        except Gone:
            self.queue.drop(key)
        except BackendError as error:
            outcome = type(error).__name__
            level, verdict = VERDICTS[type(error)]
            wait = self.queue.retry(key)
            log.log(level, "%s/%s: %s (%s); next look in %.2f s", *key, verdict, error, wait)
        except Exception:
            outcome = "bug"
            wait = self.queue.retry(key)
            log.exception("%s/%s: unexpected error; next look in %.2f s", *key, wait)
        else:
            self.queue.forget(key)
            if wake_after is not None:
                self.queue.add_after(key, wake_after)
        self.observe_seconds(loop.time() - started, outcome)

    async def reconcile(self, key: Key) -> float | None:
        """Observe, plan, apply. Returns in how many seconds to look again (None: when something happens).

        Raises:
            BackendError: the world refused.
        """
        entry = self.cache.get(key)
        if entry is None or entry.job is None or entry.job.metadata.deletion_timestamp:
            self.queue.drop(key)  # gone or going: the children go with their owner
            return None
        job = entry.job
        await self._consult(job, entry, key)
        seen = Observation(job, self.cache.workers(key), self.clock(), entry.progress, entry.trouble)
        step = plan(seen)
        if step.status != job.status:
            job = await self.backend.write_status(job, step.status)
            self.cache.put_job(job)
        for event in step.events:
            log.info("%s/%s: %s: %s", *key, event.reason, event.message)
            await self.backend.tell(job, event)
        await self._act(job, entry, step)
        return step.wake_after

    async def _consult(self, job: TrainingJob, entry: Entry, key: Key) -> None:
        """Ask the launchers whose pods do not say how their attempt stands.

        A pod that is not ready may have ended its attempt and wait for orders. And of a pod that was made for an
        earlier attempt than the current one a new operator does not know which one it runs. While a group starts
        neither can be: launchers wait for orders only after a step, and none is made before all workers run.
        """
        status = job.status
        if not (status.is_true(ConditionType.RUNNING) or status.pod_attempt_override is not None or status.finished):
            return
        asked = [
            w
            for w in self.cache.workers(key)
            if w.supervised and not w.terminating and (w.state is WorkerState.RUNNING or w.held)
            if not w.ready or w.runs < status.attempt
        ]
        if asked:
            states = await self.backend.ask(job, [entry.pods[w.name] for w in asked])
            entry.states.update({w.uid: state for w, state in zip(asked, states, strict=True) if state})

    async def _order(self, job: TrainingJob, entry: Entry, action: OrderWorkers) -> None:
        states = await self.backend.order(job, [entry.pods[w.name] for w in action.workers], action.attempt)
        for worker, state in zip(action.workers, states, strict=True):
            if state is None:
                entry.deaf.add(worker.uid)
            else:
                entry.states[worker.uid] = state

    async def _act(self, job: TrainingJob, entry: Entry, step: Plan) -> None:
        for action in step.actions:
            match action:
                case CreateWorkers():
                    await self._create(job.current, entry, action)
                case CreatePlaceholders():
                    await self._seek_room(job, action)
                case DeleteWorkers():
                    await self.backend.delete_pods(job, action.workers, force=action.force)
                case OrderWorkers():
                    await self._order(job, entry, action)

    async def _create(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> None:
        """Create pods, and remember why they were refused, if they were."""
        try:
            await self._create_group(job, action)
        except Refused as error:
            entry.trouble = Trouble(error.reason, str(error))
            raise
        entry.trouble = None

    async def _create_group(self, job: TrainingJob, action: CreateWorkers) -> None:
        """Create pods of the current attempt, after a look at the world itself that no other attempt is alive.

        The cache may lag; what is created here must not. One list per group is what the fence costs.
        """
        others = [p for p in await self.backend.list_pods(job) if _attempt(p) != action.attempt]
        if others:
            for pod in others:
                self.cache.put_pod(pod)
            raise Stale(f"{len(others)} pods of another attempt exist")
        token = self.backend.token(job)
        await self.backend.create(job, build_shared(job, token))
        secret = secret_name(job, token) if job.spec.restarts_in_place else None
        pods = [
            build_pod(job, action.attempt, i, trainer_image=self.trainer_image, secret=secret) for i in action.indexes
        ]
        for pod in await self.backend.create(job, pods):
            self.cache.put_pod(pod)

    async def _seek_room(self, job: TrainingJob, action: CreatePlaceholders) -> None:
        """Create placeholders. One that is refused, by a quota above all, has found no room."""
        build = partial(build_placeholder, job.current, action.group, trainer_image=self.trainer_image)
        try:
            for pod in await self.backend.create(job.current, [build(index) for index in action.indexes]):
                self.cache.put_pod(pod)
        except Refused as error:
            log.info("%s/%s: there is no room for more workers: %s", *job.key, error)


def _attempt(pod: Pod) -> int:
    return int(pod["metadata"]["labels"][constants.LABEL_ATTEMPT])
