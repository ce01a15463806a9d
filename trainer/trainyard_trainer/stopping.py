"""When a training ends: its number of steps, and evaluations that end it earlier."""

import math

from trainyard.config import RunConfig
from trainyard.resource.training import Stop
from trainyard_trainer.checkpoint.manifest import ConvergenceState
from trainyard_trainer.runtime.errors import ConfigError


def total_steps(config: RunConfig, samples: int, batch: int) -> int:
    """Return the optimizer steps of the entire run; an epoch ends with the step that consumes its last sample.

    Args:
        config: configuration of the run.
        samples: samples to train on.
        batch: samples of one step.

    Raises:
        ConfigError: the learning rate would still be rising, or already be falling, when the training ends.
    """
    trainer = config.trainer
    stop = trainer.stop
    if stop.epochs is not None:
        total = math.ceil(stop.epochs * samples / batch)
    elif stop.tokens is not None:
        total = math.ceil(stop.tokens / (batch * config.tokens_per_sample))
    else:
        assert stop.steps is not None, "admission demands one of the three"
        total = stop.steps
    scheduled = trainer.schedule.warmup_steps + (trainer.schedule.decay_steps or 0)
    if scheduled > total:
        raise ConfigError(
            f"spec.trainer.schedule: warmupSteps and decaySteps are {scheduled} together, but spec.trainer.stop means "
            f"{total} steps; shorten them, or train longer"
        )
    return total


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
        """Return why the training ends after an evaluation with this loss; None if it continues."""
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
