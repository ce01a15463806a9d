"""The work on one set of documents: tasks that any number of processes on any number of machines share."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from trainyard_trainer.data.encoding import Encoder, Task, TokenizerChoice, encode, write_atomically
from trainyard_trainer.data.lease import Leases
from trainyard_trainer.data.token_set import INDEX
from trainyard_trainer.data.tokenizer import Tokenizer

PROCESS_MEMORY = 256 << 20
"""Bytes of memory that a process which encodes may need: 100 MiB were measured with a vocabulary of 32,768."""
MAX_PROCESSES = 128
CGROUP = Path("/sys/fs/cgroup")


class Workers(Protocol):
    """Who encodes, and who is told about it."""

    works: bool
    """Whether this process works; otherwise it waits until others are done."""
    first: float
    """Where in the tasks this process begins, from 0 to 1."""
    processes: int
    """Processes that encode at a time."""

    @property
    def report(self) -> Callable[[float, float], None]:
        """Receives the share of the preparation that is done, and the seconds up to the last task that was done."""

    @property
    def seconds(self) -> float:
        """Seconds since the preparation began."""


class EncodingTasks:
    """The tasks of one set of documents, until all are done, by this process or by another one."""

    def __init__(
        self,
        workshop: Workers,
        tasks: list[Task],
        folder: Path,
        choice: TokenizerChoice,
        tokenizer: Tokenizer,
        *,
        alone: bool,
    ) -> None:
        """Describe the tasks of a folder.

        Args:
            workshop: who works, and who is told about it.
            tasks: the tasks; their files are in the folder.
            folder: folder of the set.
            choice: the tokenizer, for other processes.
            tokenizer: the tokenizer, loaded.
            alone: whether this process does the work itself, since another one would take longer to start.
        """
        self._workshop, self._tasks, self._folder = workshop, tasks, folder
        self._choice, self._tokenizer = choice, tokenizer
        self._done: set[int] = set()
        """Tasks that any process had done at the last look."""
        self._own: set[int] = set()
        """Tasks that this process has done."""
        self._alone, self._stopped = alone, False
        self._last = workshop.seconds

    def run(self) -> None:
        """Do or await all tasks, and complete the set."""
        processes = min(1 if self._alone else self._processes(), len(self._tasks)) if self._workshop.works else 0
        with ExitStack() as stack:
            leases = stack.enter_context(Leases())
            pool = stack.enter_context(ThreadPoolExecutor(max(1, processes)))
            work = [pool.submit(self._work, leases) for _ in range(processes)]
            try:
                for _ in waits(self._is_complete):
                    self._report()
                    for failed in (future for future in work if future.done()):
                        failed.result()
            finally:
                self._stopped = True
        self._report()
        self._complete()

    def _processes(self) -> int:
        """Return the number of processes that processors and memory allow."""
        return max(1, min(self._workshop.processes, available_memory() // PROCESS_MEMORY, MAX_PROCESSES))

    def _work(self, leases: Leases) -> None:
        """Do one task after the other that no other process does (one thread)."""
        with ExitStack() as stack:
            encoder: Encoder | None = None
            while not self._stopped:
                index = self._claim(leases)
                if index is None:
                    # Others hold the rest, and may fail.
                    time.sleep(0.05 if self._alone else 1.0)
                    continue
                try:
                    if not self._alone:
                        encoder = encoder or stack.enter_context(Encoder(self._choice))
                        encoder.encode(self._tasks[index])
                    else:
                        encode(self._tasks[index], self._tokenizer)
                    self._own.add(index)
                finally:
                    leases.release(self._lease(index))

    def _lease(self, index: int) -> Path:
        return self._tasks[index].target.with_suffix(".lease")

    def _claim(self, leases: Leases) -> int | None:
        """Return a task that this process has the lease of now; None if there is no other at the moment."""
        first = int(self._workshop.first * len(self._tasks))
        for offset in range(len(self._tasks)):
            index = (first + offset) % len(self._tasks)
            if index in self._done or index in self._own or not leases.acquire(self._lease(index)):
                continue
            # It may have been done between the last look and now.
            if not self._tasks[index].target.with_suffix(".json").exists():
                return index
            leases.release(self._lease(index))
        return None

    def _is_complete(self) -> bool:
        names = {path.name for path in self._folder.iterdir()}
        done = {i for i, task in enumerate(self._tasks) if f"{task.target.stem}.json" in names}
        if done != self._done:
            self._done, self._last = done, self._workshop.seconds
        return INDEX in names or len(done) == len(self._tasks)

    def _report(self) -> None:
        sizes = [sum(part.size for part in task.parts) for task in self._tasks]
        done = sum(sizes[index] for index in self._done)
        self._workshop.report(0.1 + 0.9 * done / max(1, sum(sizes)), self._last)

    def _complete(self) -> None:
        """Write the index, which every process would write alike."""
        if (self._folder / INDEX).exists():
            return
        records = [json.loads(task.target.with_suffix(".json").read_text()) for task in self._tasks]
        digest = hashlib.sha256("".join(record["digest"] for record in records).encode()).hexdigest()
        index = {
            "dtype": self._tokenizer.dtype,
            "files": [[task.target.name, record["count"]] for task, record in zip(self._tasks, records, strict=True)],
            "digest": digest,
        }
        write_atomically(self._folder / INDEX, json.dumps(index))
        # A process that was killed behind its last task has left its lease.
        for lease in self._folder.glob("*.lease"):
            lease.unlink(missing_ok=True)


def waits(condition: Callable[[], bool]) -> Iterator[None]:
    """Yield until a condition holds, at growing intervals of at most half a second."""
    seconds = 0.01
    while not condition():
        yield
        time.sleep(seconds)
        seconds = min(0.5, 2 * seconds)


def available_memory() -> int:
    """Return the bytes of memory that processes may still use: those of the machine, or of the control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:  # no limit, or version 1 of control groups
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
