"""Which steps are good: those whose gradient has a norm that is finite and not a spike."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import Literal

from trainyard.resource.health import BadStepPolicy

SPIKE_WINDOW = 100
"""Good steps whose median norm a spike is measured against."""
MIN_GOOD_STEPS = 20
"""Good steps before the first spike can be detected: norms fall fast at the beginning of training."""
MAX_ROLLBACKS = 3
"""Rollbacks to one and the same checkpoint: if what follows it fails each time, other samples do not help."""


class GradientGuard:
    """Decides, step by step, whether a gradient may be applied."""

    def __init__(self, policy: BadStepPolicy, all_true: Callable[[bool], bool]) -> None:
        """`all_true`: whether a condition holds on every rank.

        All ranks compute the same norm, but each from gradients of its own: a rank with faulty memory or a faulty
        processor may be the only one to see a bad norm, and the last digit may differ between unlike processors.
        Ranks that decided differently would diverge for good.
        """
        self._spike_factor = policy.spike_factor
        self._all_true = all_true
        self._norms: deque[float] = deque(maxlen=SPIKE_WINDOW)

    @property
    def norms(self) -> tuple[float, ...]:
        """Norms of the last good steps, for a checkpoint."""
        return tuple(self._norms)

    def restore(self, norms: Iterable[float]) -> None:
        """Continue with the norms of a checkpoint, so that a run that resumes decides like one that went through."""
        self._norms.clear()
        self._norms.extend(norms)

    def is_good(self, norm: float) -> bool:
        """Return whether a gradient with this norm (before clipping) may be applied, the same on every rank."""
        good = self._all_true(math.isfinite(norm) and not self._is_spike(norm))
        if good:
            self._norms.append(norm)
        return good

    def _is_spike(self, norm: float) -> bool:
        if self._spike_factor is None or len(self._norms) < MIN_GOOD_STEPS:
            return False
        return norm > self._spike_factor * median(self._norms)


class BadStepCounter:
    """Counts bad steps, and applies the policy of spec.health.badSteps to the count."""

    def __init__(self, policy: BadStepPolicy) -> None:
        self._policy = policy
        self.consecutive = 0
        """Bad steps since the last good one."""
        self.skipped = 0
        """Bad steps of this attempt."""
        self.last: int | None = None
        """Number of the last bad step."""
        self._rollbacks: dict[int, int] = {}
        """Rollbacks of this attempt by the step of the checkpoint."""

    @property
    def rollbacks(self) -> int:
        """Rollbacks of this attempt."""
        return sum(self._rollbacks.values())

    def record_good(self) -> None:
        """Record a step whose gradient was applied."""
        self.consecutive = 0

    def record_bad(self, step: int, can_roll_back: bool) -> Literal["Skip", "Rollback", "Fail"]:
        """Record a bad step, and return what follows from it."""
        self.consecutive += 1
        self.skipped += 1
        self.last = step
        if self._policy.action == "Fail":
            return "Fail"
        if self.consecutive < self._policy.limit:
            return "Skip"
        return "Rollback" if self._policy.action == "Rollback" and can_roll_back else "Fail"

    def record_rollback(self, step: int) -> bool:
        """Record a rollback to the checkpoint of a step, and return whether another try from there may help."""
        self.consecutive = 0
        self._rollbacks[step] = self._rollbacks.get(step, 0) + 1
        return self._rollbacks[step] <= MAX_ROLLBACKS

    def __str__(self) -> str:
        return f"{self.consecutive} in a row, limit {self._policy.limit}"
