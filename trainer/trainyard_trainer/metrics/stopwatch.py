"""Wall time of the training loop by phase."""

import time
from collections.abc import Callable

PHASES = ("data", "passes", "update", "checkpoint", "evaluation", "other")
"""data: waiting for the batch. passes: forward and backward, including their communication. update: gradient norm,
clipping and optimizer; the norm waits for the slowest rank, and on a GPU the host waits here for the step before.
checkpoint: waiting for a checkpoint, and agreeing on when to save. evaluation: evaluations. other: reports and all
else."""


class Stopwatch:
    """Attributes the time of a rank to phases, without gaps: the phases add up to the wall time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def mark(self, phase: str, *, waited: float = 0.0) -> None:
        """Attribute the time since the last mark to a phase, except for the seconds that it waited for data."""
        now = self._clock()
        self._seconds[phase] += now - self._last - waited
        self._seconds["data"] += waited
        self._last = now

    def lap(self) -> dict[str, float]:
        """Return the seconds of each phase since the last lap, and begin the next one."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
