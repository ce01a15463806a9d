"""What the time of the training loop goes into."""

import time
from collections.abc import Callable

PHASES = ("data", "passes", "update", "checkpoint", "evaluation", "other")
"""data: waiting for the batch. passes: forward and backward, and the communication in them. update: norm of the
gradient, clipping, optimizer; the norm waits for the slowest rank, and on a GPU for what the passes have queued.
checkpoint: waiting for one, and agreeing on it. evaluation. other: reports, and all else."""


class Stopwatch:
    """Divides the time of a rank among the phases, without a gap: they add up to the wall time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def mark(self, phase: str, *, waited: float = 0.0) -> None:
        """What has passed since the last mark went into this phase, but for the seconds that waited for data."""
        now = self._clock()
        self._seconds[phase] += now - self._last - waited
        self._seconds["data"] += waited
        self._last = now

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
