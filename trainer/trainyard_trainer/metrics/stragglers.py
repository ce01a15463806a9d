"""Detection of stragglers: ranks that compute more slowly than the others.

All ranks wait for each other in every step, so the duration of a step does not show which rank is slow. Therefore each
rank times the same small matrix product every few seconds, without communication, and the times are exchanged together
with the loss of a report.
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
"""Number of recent measurements whose median counts."""
ROUNDS = 3
"""Consecutive comparisons, each after new measurements, in which a straggler is slow: a single slow moment does not
count."""


class ComputeProbe:
    """Times the same small computation on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        size, dtype = (4096, torch.bfloat16) if self._cuda else (400, torch.float32)
        self._matrix = torch.ones(size, size, device=device, dtype=dtype)
        self._due = 0.0
        self._times: deque[float] = deque(maxlen=KEPT)
        self._pending: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def after_step(self) -> None:
        """Measure if a measurement is due. Nothing waits for the device."""
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
            self._pending = begin, end
        else:
            began = time.perf_counter()
            self._work()
            self._times.append(time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        """Median of the recent measurements; 0 before the first one."""
        self._collect()
        return median(self._times) if self._times else 0.0

    def _work(self) -> None:
        # On a CPU a single call: between two calls another thread could take the GIL and hold it for 5 ms.
        for _ in range(4 if self._cuda else 1):
            torch.mm(self._matrix, self._matrix)

    def _collect(self) -> None:
        if self._pending is not None and self._pending[1].query():  # type: ignore[no-untyped-call]
            begin, end = self._pending
            self._pending = None
            self._times.append(begin.elapsed_time(end) / 1000)


class Stragglers:
    """Finds stragglers if spec.health.straggler is set. It exists on every rank, because each rank measures itself."""

    def __init__(self, config: Straggler | None, rank: int, size: int, device: torch.device) -> None:
        self._probe = ComputeProbe(device) if config is not None and size > 1 else None
        self._factor = config.factor if config is not None else 0.0
        self._rank, self._size = rank, size
        self._slow_counts = [0] * size
        """Consecutive comparisons in which each rank was slow."""
        self._last_comparison = 0.0

    def after_step(self) -> None:
        """Time this rank's computation if it is due."""
        if self._probe is not None:
            self._probe.after_step()

    def pack(self, loss: Tensor) -> Tensor:
        """Return a vector to be summed over the ranks: the loss, followed by the time of each rank.

        Returns:
            [1 + world size], or [1] if ranks are not timed.
        """
        loss = loss.view(1)
        if self._probe is None:
            return loss
        times = torch.zeros(self._size, device=loss.device, dtype=loss.dtype)
        times[self._rank] = self._probe.seconds
        return torch.cat([loss, times])

    def find(self, times: list[float], now: float) -> dict[int, float]:
        """Return the stragglers, with their time divided by the median rank's.

        Args:
            times: seconds for the same computation, by rank [world size].
            now: seconds of a monotonic clock.
        """
        if self._probe is None or not all(times):
            return {}
        # The lower median: of two ranks the faster one is the reference.
        typical = median_low(times)
        ratios = [seconds / typical for seconds in times]
        # Compare only after new measurements.
        if now - self._last_comparison >= EVERY:
            self._last_comparison = now
            self._slow_counts = [
                count + 1 if ratio > self._factor else 0 for count, ratio in zip(self._slow_counts, ratios, strict=True)
            ]
        return {rank: ratios[rank] for rank, count in enumerate(self._slow_counts) if count >= ROUNDS}
