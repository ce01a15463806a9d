"""Ranks that compute slower than the others.

All ranks wait for each other in every step, so how long a step takes says nothing about who holds it up. What can be
told apart is how fast a rank's processor is by itself: each times the same small product of matrices every few seconds,
which no other rank has a part in, and the times travel with the loss of a report.
"""

import time
from collections import deque
from statistics import median, median_low

import torch
from torch import Tensor

from trainyard.resource.health import Straggler

EVERY = 5.0
"""Seconds from one measurement to the next; one takes a few milliseconds."""
KEPT = 5
"""Measurements whose median counts."""
ROUNDS = 3
"""Judgements in a row, each after new measurements, that make a rank a straggler: one slow moment is none."""


class Pace:
    """How long the same piece of work takes on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        size, dtype = (4096, torch.bfloat16) if self._cuda else (400, torch.float32)
        self._matrix = torch.ones(size, size, device=device, dtype=dtype)
        self._due = 0.0
        self._times: deque[float] = deque(maxlen=KEPT)
        self._under_way: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def after_step(self) -> None:
        """Measure, if it is time to. Nothing waits for the device."""
        self._collect()
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            self._work()
            end.record()
            self._under_way = begin, end
        else:
            began = time.perf_counter()
            self._work()
            self._times.append(time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        """The median; 0 before the first measurement."""
        self._collect()
        return median(self._times) if self._times else 0.0

    def _work(self) -> None:
        # On a CPU in one call: between two of them another thread could take the interpreter, and hold it for 5 ms.
        for _ in range(4 if self._cuda else 1):
            torch.mm(self._matrix, self._matrix)

    def _collect(self) -> None:
        if self._under_way is not None and self._under_way[1].query():  # type: ignore[no-untyped-call]
            begin, end = self._under_way
            self._under_way = None
            self._times.append(begin.elapsed_time(end) / 1000)


class Stragglers:
    """Finds them, where spec.health.straggler asks for it. On every rank, since all take part in the measuring."""

    def __init__(self, config: Straggler | None, rank: int, size: int, device: torch.device) -> None:
        self._pace = Pace(device) if config is not None and size > 1 else None
        self._factor = config.factor if config is not None else 0.0
        self._rank, self._size = rank, size
        self._rows = [0] * size
        self._judged = 0.0

    def after_step(self) -> None:
        """See `Pace.after_step`."""
        if self._pace is not None:
            self._pace.after_step()

    def pack(self, loss: Tensor) -> Tensor:
        """A vector to be added up over the ranks: the loss, then the time of each rank [1, or 1 + world size]."""
        loss = loss.view(1)
        if self._pace is None:
            return loss
        times = torch.zeros(self._size, device=loss.device, dtype=loss.dtype)
        times[self._rank] = self._pace.seconds
        return torch.cat([loss, times])

    def find(self, times: list[float], now: float) -> dict[int, float]:
        """Ranks that are slow, and how many times as long they take as the median rank, given the time of each."""
        if self._pace is None or not all(times):
            return {}
        # Of two ranks the faster one is the measure, so that one of them can be slow at all.
        usual = median_low(times)
        ratios = [seconds / usual for seconds in times]
        if now - self._judged >= EVERY:
            self._judged = now
            self._rows = [row + 1 if r > self._factor else 0 for row, r in zip(self._rows, ratios, strict=True)]
        return {rank: ratios[rank] for rank, row in enumerate(self._rows) if row >= ROUNDS}
