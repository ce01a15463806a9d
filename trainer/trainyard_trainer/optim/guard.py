"""Which steps are good: those whose gradient has a norm that is finite and not a spike."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trainyard.resource.health import BadStepPolicy
from trainyard_trainer.runtime.step_agreement import StepAgreement

SPIKE_WINDOW = 100
"""Good steps whose median norm a spike is measured against."""
MIN_GOOD_STEPS = 20
"""Good steps before the first spike can be detected: norms fall fast at the beginning of training."""
MAX_ROLLBACKS = 3
"""Rollbacks to one and the same checkpoint: if what follows it fails each time, other samples do not help."""


class GradientGuard:
    """Decides, step by step and on the device, whether a gradient may be applied; the host does not wait for it."""

    def __init__(self, policy: BadStepPolicy, agreement: StepAgreement | None) -> None:
        """`agreement`: with the other ranks; None for a parameter server, which decides alone.

        All ranks compute the same norm, but each from gradients of its own: a rank with faulty memory or a faulty
        processor may be the only one to see a bad norm, and the last digit may differ between unlike processors.
        Ranks that decided differently would diverge for good.
        """
        self._spike_factor = policy.spike_factor
        self._agreement = agreement
        self._window = torch.full((SPIKE_WINDOW,), math.inf, dtype=torch.float64)
        """Norms of the last good steps [SPIKE_WINDOW], in a ring; infinite where there is none yet."""
        self._count = torch.zeros((), dtype=torch.int64)
        """Good steps that the window has seen."""
        self._slots = torch.arange(SPIKE_WINDOW)

    @property
    def norms(self) -> tuple[float, ...]:
        """Norms of the last good steps, the oldest first, for a checkpoint. The host waits for the device."""
        window, count = self._window.tolist(), int(self._count.item())
        if count <= SPIKE_WINDOW:
            return tuple(window[:count])
        begin = count % SPIKE_WINDOW
        return tuple(window[begin:] + window[:begin])

    def restore(self, norms: Sequence[float]) -> None:
        """Continue with the norms of a checkpoint, so that a run that resumes decides like one that went through."""
        self._window.fill_(math.inf)
        self._window[: len(norms)] = torch.tensor(norms, dtype=torch.float64)
        self._count.fill_(len(norms))

    @torch.no_grad()
    def check(self, norm: Tensor) -> Tensor:
        """Return whether a gradient with this norm (a scalar, before clipping) may be applied, on all ranks alike.

        The result is a truth value on the device of the norm.
        """
        self._move_to(norm.device)
        bad = ~norm.isfinite()
        if self._spike_factor is not None:
            bad |= self._is_spike(norm.double())
        if self._agreement is not None:
            bad = self._agreement.any_bad(bad)
        good = ~bad
        replaced = (self._slots == self._count % SPIKE_WINDOW) & good
        self._window = torch.where(replaced, norm.double(), self._window)
        self._count += good
        return good

    def _is_spike(self, norm: Tensor) -> Tensor:
        """Return whether a norm exceeds the factor times the median of the window, if that has enough norms."""
        assert self._spike_factor is not None
        known = self._count.clamp(min=1, max=SPIKE_WINDOW)
        # Norms that are not known yet are infinite, and so come last.
        middle = torch.stack([(known - 1) // 2, known // 2])
        median = self._window.sort().values.gather(0, middle).mean()
        return (self._count >= MIN_GOOD_STEPS) & (norm > self._spike_factor * median)

    def _move_to(self, device: torch.device) -> None:
        """Move the window to the device of the gradients, in the first step."""
        if self._window.device != device:
            self._window, self._count, self._slots = (
                tensor.to(device) for tensor in (self._window, self._count, self._slots)
            )


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
