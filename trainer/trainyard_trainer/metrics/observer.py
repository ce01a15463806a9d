"""How those who watch a training hear of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainyard_trainer.metrics.step_report import StepReport


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training stands when an attempt begins."""

    step: int
    """Optimizer steps done by earlier attempts."""
    drawn: int
    """Samples that these have drawn."""
    total_steps: int
    batch: int
    """Samples of one step, over all ranks."""
    samples: int
    """How many there are to train on."""


class Observer:
    """Watches the training of a rank, and changes nothing. Hears of everything, and overrides what matters to it."""

    def begin(self, start: Start) -> None:
        """The first step of the attempt is next."""

    def before_step(self, step: int) -> None:
        """A step is about to begin, by its number from 1."""

    def after_step(self, step: int) -> None:
        """It is done, though it may have changed nothing."""

    def skipped(self, step: int, norm: float) -> None:
        """It has changed nothing, for this norm of its gradient."""

    def rolled_back(self, step: int) -> None:
        """The run is at an earlier step again; what it has drawn stays drawn."""

    def reported(self, report: StepReport) -> None:
        """These are the figures of the step just done, the same on every rank."""

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """So well does the model do on held-out samples after a step, to six digits."""

    def spent(self, seconds: Mapping[str, float]) -> None:
        """What the time since the last call went into, by phase: of one step, and what lies around it."""

    def checkpoint_resumed(self, step: int, damaged: int) -> None:
        """Called before the training begins, if there are checkpoints.

        `step`: step of the checkpoint that this attempt resumes from, 0 if none is intact. `damaged`: damaged
        checkpoints that are newer.
        """

    def checkpoint_saved(self, step: int, seconds: float, size: int | None) -> None:
        """Called on rank 0 when a checkpoint is complete. `size`: in bytes; None if not known."""

    def checkpoint_failed(self, step: int) -> None:
        """Called on rank 0 when a checkpoint could not be written."""

    def checkpoint_stalled(self, seconds: float) -> None:
        """Called when training has waited for a checkpoint."""
