"""When a training is done."""

import math
from typing import Any

from trainyard.config import RunConfig
from trainyard.resource.training import Stop
from trainyard_trainer.runtime.errors import ConfigError


def total_steps(config: RunConfig, samples: int, batch: int) -> int:
    """Optimizer steps of the whole run; an epoch ends with the step that draws its last sample.

    Args:
        config: what the user wants.
        samples: how many there are to train on.
        batch: samples of one step.

    Raises:
        ConfigError: the learning rate would still be rising, or already falling, when the training ends.
    """
    trainer = config.trainer
    stop = trainer.stop
    if stop.epochs is not None:
        total = math.ceil(stop.epochs * samples / batch)
    elif stop.tokens is not None:
        total = math.ceil(stop.tokens / (batch * config.tokens_per_sample))
    else:
        assert stop.steps is not None, "admission wants one of the three"
        total = stop.steps
    shaped = trainer.schedule.warmup_steps + (trainer.schedule.decay_steps or 0)
    if shaped > total:
        raise ConfigError(
            f"spec.trainer.schedule: warmupSteps and decaySteps are {shaped} together, but spec.trainer.stop means "
            f"{total} steps; shorten them, or train longer"
        )
    return total


class Convergence:
    """Judges the evaluations of a run, one after the other. Every rank sees the same figures, so all decide alike."""

    def __init__(self, stop: Stop) -> None:
        self._target = stop.target_loss
        self._converged = stop.converged
        self._lowest = math.inf
        self._stale = 0

    def remember(self) -> dict[str, Any]:
        """What has been seen so far, as JSON; `recall` takes it up again."""
        return {"lowest": self._lowest if math.isfinite(self._lowest) else None, "stale": self._stale}

    def recall(self, seen: dict[str, Any]) -> None:
        """Go on as if this one had seen it."""
        self._lowest = math.inf if seen["lowest"] is None else seen["lowest"]
        self._stale = seen["stale"]

    def judge(self, loss: float) -> str | None:
        """Why the training is over after an evaluation with this loss, in words; None to go on."""
        if self._target is not None and loss <= self._target:
            return f"the evaluation loss {loss:.6g} has reached spec.trainer.stop.targetLoss {self._target:g}"
        if self._converged is None:
            return None
        better = loss < self._lowest - self._converged.min_delta
        self._stale = 0 if better else self._stale + 1
        self._lowest = min(self._lowest, loss) if better else self._lowest
        if self._stale < self._converged.patience:
            return None
        return f"converged: the evaluation loss has not fallen below {self._lowest:.6g} for {self._stale} evaluations"
