"""Which steps are good: those whose gradient has a norm that is finite, and no spike."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from trainyard.resource.health import BadStepPolicy

WINDOW = 100
"""Good steps that a spike is measured against."""
FEWEST = 20
"""Good steps without which nothing is called a spike: at first norms fall fast."""
MAX_ROLLBACKS = 3
"""To one and the same checkpoint: if what follows it fails each time, other samples do not help."""


class GradientGuard:
    """Judges the steps of a run, one after the other."""

    def __init__(self, config: BadStepPolicy, agree: Callable[[bool], bool]) -> None:
        """`agree`: whether something holds on every rank.

        All ranks compute the same norm, but from gradients of their own: one whose memory or processor has spoilt its
        copy is alone with what it sees, and the last digit of a norm may differ between unlike processors. Ranks that
        went on in different ways would never be equal again.
        """
        self._factor = config.spike_factor
        self._agree = agree
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def is_good(self, norm: float) -> bool:
        """Whether a step with this norm of its gradient (before clipping) is to be made."""
        good = self._agree(math.isfinite(norm) and not self._is_spike(norm))
        if good:
            self._norms.append(norm)
        return good

    def _is_spike(self, norm: float) -> bool:
        return self._factor is not None and len(self._norms) >= FEWEST and norm > self._factor * median(self._norms)


class BadStepCounter:
    """What is to be done about bad steps, given how many have come in a row."""

    def __init__(self, config: BadStepPolicy) -> None:
        self._config = config
        self.row = 0
        """Bad steps since the last good one."""
        self.skipped = 0
        """Bad steps of this attempt."""
        self.last: int | None = None
        """The last of them."""
        self._rollbacks: dict[int, int] = {}

    @property
    def rollbacks(self) -> int:
        """How often this attempt has gone back to a checkpoint."""
        return sum(self._rollbacks.values())

    def good(self) -> None:
        """A step was made."""
        self.row = 0

    def bad(self, step: int, can_go_back: bool) -> str:
        """A step was not made. Returns what follows: Skip, Rollback or Fail."""
        self.row += 1
        self.skipped += 1
        self.last = step
        if self._config.action == "Fail":
            return "Fail"
        if self.row < self._config.limit:
            return "Skip"
        return "Rollback" if self._config.action == "Rollback" and can_go_back else "Fail"

    def gone_back(self, step: int) -> bool:
        """The run is at a checkpoint again. Whether that may help."""
        self.row = 0
        self._rollbacks[step] = self._rollbacks.get(step, 0) + 1
        return self._rollbacks[step] <= MAX_ROLLBACKS

    def __str__(self) -> str:
        return f"{self.row} in a row of at most {self._config.limit}"


def nonfinite_score(loss: float, norm: float) -> int:
    """How much speaks for what is no number having come from this rank.

    Args:
        loss: this rank's own part of it. Sums over ranks spread what is no number, but a part is no sum: 2.
        norm: of the gradient. It is a sum over ranks; one that is no number on some ranks only became so there: 1.
    """
    return 2 if not math.isfinite(loss) else int(not math.isfinite(norm))


def nonfinite_sources(suspicions: Sequence[float]) -> list[int]:
    """Ranks from which what is no number came, given the score of each; none if all are alike."""
    most = max(suspicions)
    found = [rank for rank, s in enumerate(suspicions) if s == most]
    return found if len(found) < len(suspicions) else []
