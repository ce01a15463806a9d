"""What happens after a bad step: it is skipped, the run rolls back to a checkpoint, or the attempt fails."""

import math
from collections.abc import Sequence

from trainyard.resource.health import BadStepPolicy
from trainyard_trainer.checkpoint.saver import Saver
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.optim.update import Update
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import BadSteps
from trainyard_trainer.runtime.world import World
from trainyard_trainer.train_state import TrainState


class BadStepHandler:
    """Applies spec.health.badSteps on all ranks alike."""

    def __init__(
        self,
        policy: BadStepPolicy,
        world: World,
        state: TrainState,
        update: Update,
        observers: list[Observer],
    ) -> None:
        self._policy = policy
        self._world = world
        self._state = state
        self._update = update
        self._observers = observers

    def handle(self, step: int, loss: float, norm: float, saver: Saver | None) -> bool:
        """Handle a step that was not applied. Returns True if the run has been rolled back.

        Args:
            step: its number; the run may have made another step since.
            loss: this rank's own part of the loss.
            norm: norm of the gradient.
            saver: None without checkpoints.

        Raises:
            BadSteps: the policy demands that the attempt fails.
        """
        counter = self._state.bad_steps
        action = counter.record_bad(step, can_roll_back=saver is not None)
        sources = nonfinite_sources(self._world.gather(nonfinite_score(loss, norm)))
        description = _describe(step, norm, sources)
        if self._world.rank == 0:
            log.logger.warning("%s; skipped the step (%s)", description, counter)
        for observer in self._observers:
            observer.skipped(step, norm)
        if action == "Rollback" and saver is not None and self._roll_back(saver, step):
            return True
        # Without a checkpoint to roll back to, or if rollbacks did not help, the attempt fails.
        if action != "Skip":
            raise BadSteps(
                f"{description} ({counter}); spec.health.badSteps.action is {self._policy.action}",
                on_other_ranks=bool(sources) and self._world.rank not in sources,
            )
        return False

    def _roll_back(self, saver: Saver, failed_step: int) -> bool:
        """Return to the newest good checkpoint, and continue with the samples behind those of the failed step.

        Returns False if that cannot help.
        """
        folder = saver.find_rollback_target()
        if folder is None:
            return False
        self._state.roll_back(folder, saver.group, failed_step)
        self._update.after_rollback(folder)
        if not self._state.bad_steps.record_rollback(self._state.step):
            return False
        for observer in self._observers:
            observer.rolled_back(self._state.step)
        log.info(
            f"rolled back to step {self._state.step}; the samples consumed since then are not repeated",
            rollback=self._state.step,
        )
        return True


def _describe(step: int, norm: float, sources: list[int]) -> str:
    """Return one line about a bad step: its norm, and the ranks that the NaN or Inf came from, if known."""
    text = f"step {step}: the norm of the gradient is {norm:.4g}"
    ranks = ", ".join(map(str, sources))
    if sources and math.isfinite(norm):
        return f"{text}, but not finite on rank {ranks}"
    if sources:
        return f"{text}, which came from rank {ranks}"
    return f"{text}, a spike" if math.isfinite(norm) else text


def nonfinite_score(loss: float, norm: float) -> int:
    """Return how likely it is that a NaN or Inf came from this rank.

    Args:
        loss: this rank's own part of the loss. It is not a sum over ranks, so a NaN in it comes from this rank: 2.
        norm: norm of the gradient, a sum over ranks. If it is not finite on some ranks only, it became so there: 1.
    """
    return 2 if not math.isfinite(loss) else int(not math.isfinite(norm))


def nonfinite_sources(scores: Sequence[float]) -> list[int]:
    """Return the ranks that a NaN or Inf came from, given the score of each rank; empty if all scores are equal."""
    highest = max(scores)
    ranks = [rank for rank, score in enumerate(scores) if score == highest]
    return ranks if len(ranks) < len(scores) else []
