"""Memory of a worker as the kernel counts it, measured from outside of its processes."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.trainer.pods import Pod

POLL_SECONDS = 0.05
SHARES_SECONDS = 0.5
"""Time between two looks at shared pages, for which the kernel walks through all pages of a process."""
_Program = tuple[int, bytes]
"""A process id and its command line. A process that is about to execute another program is a copy of its parent."""


@dataclass(frozen=True)
class Measured:
    """Peak memory, in bytes, that counts against the limit of a worker: anonymous and shared memory of its processes.

    Memory mapped from files does not count, since the kernel reclaims it before it kills a container for its limit.
    Pages that processes have inherited count in equal parts for each of them, and those of /dev/shm for the ranks, so
    that the sum over all processes is right.
    """

    ranks: list[int] = field(default_factory=list)
    """Peak of each rank, by local rank."""
    others: list[int] = field(default_factory=list)
    """Peak of each other process: the launcher, and the processes that write checkpoints."""

    @property
    def total(self) -> int:
        """Sum over all processes of the worker. Ranks reach their peaks in the same step."""
        return sum(self.ranks) + sum(self.others)


@dataclass
class _Found:
    """What has been found about a process up to now, in bytes."""

    looked: float = -math.inf
    """When its shared pages were last counted (time.monotonic)."""
    shared: int = 0
    """Inherited pages that other processes account for."""
    shm: int = 0
    """Most memory of /dev/shm."""
    files: int = 0
    """Most memory mapped from files. The kernel takes some of it back when memory is scarce, so that what a process has
    of it at its end says nothing about the time of its peak."""
    sampled: int = 0
    """Most anonymous and shared memory that a look found. The kernel keeps the peak of these and of files only as one
    sum, whose largest value less the most memory of files is as much or less."""


class Meter:
    """Follows the processes of some pods until they end.

    The kernel itself keeps the peak of each process, so that none is missed between two looks. The look with the
    largest sum counts: the last one at which all processes were alive.
    """

    def __init__(self, pods: list[Pod], parent: int | None = None) -> None:
        """`parent`: a process that the pods were forked from; it shares pages with them, and so belongs to them."""
        self._pods = pods
        self._parent = parent
        self._found: dict[_Program, _Found] = {}
        self._largest = Measured()

    def until(self, reached: Callable[[], bool]) -> Measured:
        """Return the peaks up to now as soon as something is reached, or all processes have ended."""
        while any(pod.is_alive for pod in self._pods) and not reached():
            self._look()
        self._look()
        return self._largest

    def until_step(self, step: int) -> Measured:
        """Return the peaks up to now as soon as rank 0 has reported a step (from 1)."""
        return self.until(lambda: any(report["step"] >= step for report in self._pods[0].reports))

    def until_end(self) -> Measured:
        """Return the peaks once all processes have ended."""
        return self.until(lambda: False)

    def _look(self) -> None:
        ranks = self._ranks()
        others = [*(pod.pid for pod in self._pods), *(writer for rank in ranks for writer in _children(rank))]
        if self._parent is not None:
            others.append(self._parent)
        found = Measured([*self._peaks(ranks, shm=True)], [*self._peaks(others, shm=False)])
        # Once a process has ended, the pages that it shared belong to the others.
        complete = len(found.ranks) == len(ranks) and ranks == self._ranks()
        if complete and found.total > self._largest.total:
            self._largest = found
        time.sleep(POLL_SECONDS)

    def _ranks(self) -> list[int]:
        """Return the process ids of the ranks in the order of their numbers, in which the launcher forks them."""
        return [rank for pod in self._pods for rank in sorted(_children(pod.pid))]

    def _peaks(self, pids: list[int], *, shm: bool) -> Iterator[int]:
        for pid in pids:
            # A process may end while it is looked at: no file, or no memory in it.
            with suppress(OSError, KeyError):
                yield self._peak(pid, shm=shm)

    def _peak(self, pid: int, *, shm: bool) -> int:
        """Return the peak of a process in bytes, of inherited pages its part only. `shm`: with those of /dev/shm."""
        program = pid, Path(f"/proc/{pid}/cmdline").read_bytes()
        status = _fields(Path(f"/proc/{pid}/status"))
        found = self._found.setdefault(program, _Found())
        if time.monotonic() - found.looked > SHARES_SECONDS:
            parts = _fields(Path(f"/proc/{pid}/smaps_rollup"))
            found.looked, found.shared = time.monotonic(), status["RssAnon"] - parts["Pss_Anon"]
        found.files = max(found.files, status["RssFile"])
        found.sampled = max(found.sampled, status["RssAnon"] + status["RssShmem"])
        # A writer has its part of /dev/shm only while it writes.
        found.shm = max(found.shm, status["RssShmem"])
        return max(status["VmHWM"] - found.files, found.sampled) - found.shared - (0 if shm else found.shm)


def _children(pid: int) -> list[int]:
    """Return the process ids of the children of a process; none if it has ended."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def _fields(path: Path) -> dict[str, int]:
    """Return the sizes in a file of /proc, in bytes."""
    return {key: int(size) * 1024 for key, size in re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(), re.MULTILINE)}
