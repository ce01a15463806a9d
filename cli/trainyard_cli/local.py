"""A job on this machine: the operator's own loop on the process backend, from admission to the end."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import TrainingJobSpec
from trainyard.time import utc_now
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.progress import ProgressPoller
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.local.backend import ProcessBackend

POLL = 0.5
"""Seconds between two readings of the progress: somebody is watching."""


@dataclass(slots=True)
class LocalRun:
    """One job and its world. `job` is the latest version; `changed` is set whenever something has happened."""

    key: Key
    folder: Path
    backend: ProcessBackend
    cache: Cache
    queue: WorkQueue[Key]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: bool = False

    @property
    def job(self) -> TrainingJob:
        """The job with its current status."""
        entry = self.cache.get(self.key)
        assert entry is not None
        assert entry.job is not None
        return entry.job

    @property
    def events(self) -> list[Event]:
        """What has been told so far."""
        return self.backend.events

    @property
    def over(self) -> bool:
        """Whether the job has ended, or is suspended, and no process is left."""
        at_rest = self.job.status.finished or self.job.spec.suspend
        return at_rest and not any(w.active for w in self.cache.workers(self.key))

    def suspend(self) -> None:
        """Ask for an end in good order, as `kubectl patch` with spec.suspend: true would."""
        self.interrupted = True
        self.edit(self.job.spec.replace(suspend=True))

    def edit(self, spec: TrainingJobSpec) -> None:
        """Change what is wanted, as `kubectl edit` would."""
        job = self.job
        metadata = job.metadata.model_copy(update={"generation": job.metadata.generation + 1})
        self.cache.put_job(job.replace(metadata=metadata, spec=spec))
        self.queue.add(self.key)


@asynccontextmanager
async def local_run(job: TrainingJob, folder: Path, *, capacity: int | None = None) -> AsyncIterator[LocalRun]:
    """Start a job on this machine. Leaving the context ends every process that it has started.

    `capacity`: how many pods may run at a time; see `ProcessBackend`.
    """
    metadata = job.metadata.model_copy(update={"uid": str(uuid.uuid4()), "generation": 1})
    job = job.replace(metadata=metadata)
    cache: Cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()

    def on_pod(pod: Pod, gone: bool) -> None:
        key = cache.remove_pod(pod) if gone else cache.put_pod(pod)
        assert key is not None
        queue.add(key)
        run.changed.set()

    backend = ProcessBackend(folder, on_pod, capacity)
    run = LocalRun(job.key, folder, backend, cache, queue)
    reconciler = Reconciler(cache, queue, backend, trainer_image="")
    reconciler.on_reconciled = lambda _seconds, _outcome: run.changed.set()
    poller = ProgressPoller(cache, queue, backend, utc_now, interval=POLL)
    queue.add(cache.put_job(job))
    tasks = [asyncio.create_task(reconciler.run(parallel=1)), asyncio.create_task(poller.run())]
    try:
        with _interrupts(run):
            yield run
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await backend.close()


@contextlib.contextmanager
def _interrupts(run: LocalRun) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) suspends the job; a second one kills its processes at once."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def on_signal() -> None:
        if run.interrupted:
            main.cancel()
        else:
            run.suspend()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
