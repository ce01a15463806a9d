"""A job on this machine: the operator's reconciler on the process backend."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import TrainingJobSpec
from trainyard.resource.status import ConditionType
from trainyard.time import utc_now
from trainyard_cli.output import print_notice
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.progress import ProgressPoller
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.local.backend import GRACE, ProcessBackend

POLL_SECONDS = 0.5
"""Seconds between two readings of the progress, which the user is watching."""


@dataclass(slots=True)
class LocalRun:
    """One job with its backend, cache and work queue; `changed` is set whenever the job or a pod has changed."""

    key: Key
    folder: Path
    backend: ProcessBackend
    cache: Cache
    queue: WorkQueue[Key]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: bool = False

    @property
    def job(self) -> TrainingJob:
        """Job with its current status."""
        entry = self.cache.get(self.key)
        assert entry is not None
        assert entry.job is not None
        return entry.job

    @property
    def events(self) -> list[Event]:
        """Events recorded so far, oldest first."""
        return self.backend.events

    @property
    def finished(self) -> bool:
        """Whether the job has finished or is suspended, and no process is left."""
        inactive = self.job.status.finished or self.job.status.is_true(ConditionType.SUSPENDED)
        return inactive and not any(worker.active for worker in self.cache.workers(self.key))

    def suspend(self) -> None:
        """Suspend the job, as `kubectl patch` with spec.suspend: true does."""
        self.interrupted = True
        self.edit(self.job.spec.replace(suspend=True))

    def edit(self, spec: TrainingJobSpec) -> None:
        """Replace the spec, as `kubectl edit` does."""
        job = self.job
        metadata = job.metadata.model_copy(update={"generation": job.metadata.generation + 1})
        self.cache.put_job(job.replace(metadata=metadata, spec=spec))
        self.queue.add(self.key)


@asynccontextmanager
async def local_run(job: TrainingJob, folder: Path, *, capacity: int | None = None) -> AsyncIterator[LocalRun]:
    """Start a job on this machine; leaving the context kills every process that it has started.

    `capacity`: how many pods may run at a time; see `ProcessBackend`.
    """
    metadata = job.metadata.model_copy(update={"uid": str(uuid.uuid4()), "generation": 1})
    # Whatever manages the job on a cluster, here it is this command.
    job = job.replace(metadata=metadata, spec=job.spec.replace(managed_by=None))
    cache: Cache = Cache()
    queue: WorkQueue[Key] = WorkQueue()

    def on_pod(pod: Pod, gone: bool) -> None:
        key = cache.remove_pod(pod) if gone else cache.put_pod(pod)
        assert key is not None
        queue.add(key)
        run.changed.set()

    backend = ProcessBackend(folder, on_pod, capacity)
    run = LocalRun(job.key, folder, backend, cache, queue)
    # Nothing but this process reads the status, so each change of it is shown.
    reconciler = Reconciler(cache, queue, backend, "", progress_interval=timedelta(0), quiet_interval=timedelta(0))
    reconciler.on_reconciled = lambda _seconds, _outcome: run.changed.set()
    poller = ProgressPoller(cache, queue, backend, utc_now, interval=POLL_SECONDS)
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
    """Suspend the job on the first Ctrl-C or SIGTERM; kill its processes on the second."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def on_signal() -> None:
        if run.interrupted:
            main.cancel()
        else:
            seconds = f"{GRACE:.0f} s"
            notice = f"asking the processes to end, which takes up to {seconds}; Ctrl-C again kills them"
            print_notice(notice, label="interrupted", style="yellow")
            run.suspend()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
