"""When a training ends: its number of steps, and evaluations that end it earlier."""

import math
from collections.abc import Callable

from trainyard.resource.optimization import Schedule
from trainyard.resource.training import Stop
from trainyard_trainer.checkpoint.manifest import ConvergenceState
from trainyard_trainer.data.timeline import Timeline
from trainyard_trainer.runtime.errors import ConfigError


def total_steps(stop: Stop, step: int, timeline: Timeline, epoch: int) -> int:
    """Return the optimizer steps of the entire run; an epoch ends with the step that consumes its last sample.

    Args:
        stop: spec.trainer.stop.
        step: optimizer steps done.
        timeline: what they have consumed; it counts towards epochs and tokens, whatever the batch was.
        epoch: samples to train on.
    """
    now = timeline.current
    if stop.epochs is not None:
        return step + _quotient(stop.epochs * epoch - timeline.samples_at(step), now.batch)
    if stop.tokens is not None:
        return step + _quotient(stop.tokens - timeline.tokens_at(step), now.tokens_per_step)
    assert stop.steps is not None, "admission demands one of the three"
    return stop.steps


def _quotient(remaining: int, per_step: int) -> int:
    """Return the steps that consume what remains, rounded up; 0 if nothing does."""
    return max(0, -(-remaining // per_step))


def progress_unit(stop: Stop, timeline: Timeline) -> Callable[[int], int]:
    """Return the function that measures the progress after a step as spec.trainer.stop does: in steps or in tokens."""
    return int if stop.steps is not None else timeline.tokens_at


def check_schedule(schedule: Schedule, total: int, tokens: int) -> None:
    """Check that warm-up and decay fit into the run.

    Args:
        schedule: spec.trainer.schedule.
        total: optimizer steps of the entire run.
        tokens: tokens of the entire run.

    Raises:
        ConfigError: the learning rate would still be rising, or already be falling, when the training ends.
    """
    for unit, scheduled, available in (
        ("Steps", schedule.warmup_steps + (schedule.decay_steps or 0), total),
        ("Tokens", (schedule.warmup_tokens or 0) + (schedule.decay_tokens or 0), tokens),
    ):
        if scheduled > available:
            raise ConfigError(
                f"spec.trainer.schedule: warmup{unit} and decay{unit} are {scheduled} together, but spec.trainer.stop "
                f"means {available} {unit.lower()}; shorten them, or train longer"
            )


class Convergence:
    """Decides after each evaluation whether the training ends. All ranks see the same losses and decide alike."""

    def __init__(self, stop: Stop) -> None:
        self._target = stop.target_loss
        self._converged = stop.converged
        self._lowest = math.inf
        self._stale = 0
        """Evaluations since the loss last improved."""

    def state(self) -> ConvergenceState:
        """Return the state after the evaluations so far, for a checkpoint."""
        return ConvergenceState(lowest=self._lowest if math.isfinite(self._lowest) else None, stale=self._stale)

    def load_state(self, state: ConvergenceState) -> None:
        """Restore the state from a checkpoint."""
        self._lowest = math.inf if state.lowest is None else state.lowest
        self._stale = state.stale

    def reason_to_stop(self, loss: float) -> str | None:
        """Return why the training ends after an evaluation with this loss; None if it continues.

        A loss that is NaN or Inf says nothing about convergence, and so does not count.
        """
        if not math.isfinite(loss):
            return None
        if self._target is not None and loss <= self._target:
            return f"the evaluation loss {loss:.6g} has reached spec.trainer.stop.targetLoss {self._target:g}"
        if self._converged is None:
            return None
        improved = loss < self._lowest - self._converged.min_delta
        self._stale = 0 if improved else self._stale + 1
        self._lowest = loss if improved else self._lowest
        if self._stale < self._converged.patience:
            return None
        return f"converged: the evaluation loss has not fallen below {self._lowest:.6g} for {self._stale} evaluations"
