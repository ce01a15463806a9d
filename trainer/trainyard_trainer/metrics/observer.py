"""Callbacks of the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainyard_trainer.metrics.step_report import StepReport


@dataclass(frozen=True, slots=True)
class Start:
    """State of the training at the beginning of an attempt."""

    step: int
    """Optimizer steps done by earlier attempts."""
    samples_consumed: int
    """Samples that earlier attempts have trained on, counted in samples of the present length."""
    tokens_consumed: int
    """Tokens that earlier attempts have trained on."""
    total_steps: int
    """Optimizer steps planned in total."""
    batch: int
    """Samples of one step, over all ranks."""
    samples: int
    """Samples of the training set: one epoch."""


class Observer:
    """Receives the events of the training loop of one rank. Observers do not change the training.

    Subclasses override the methods of the events that they need.
    """

    def begin(self, start: Start) -> None:
        """React to the beginning of an attempt, before its first step."""

    def before_step(self, step: int) -> None:
        """React to the beginning of a step; `step` is its number, from 1."""

    def after_step(self, step: int) -> None:
        """React to the end of a step, also of a skipped one."""

    def skipped(self, step: int, norm: float) -> None:
        """React to a step that was skipped (no update) because of the norm of its gradient."""

    def rolled_back(self, step: int) -> None:
        """React to a rollback to the checkpoint of `step`; samples are not repeated."""

    def reported(self, report: StepReport) -> None:
        """Receive the report of the step just done, which is the same on every rank."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of an evaluation on held-out samples, by name, to six significant digits."""

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Receive the seconds since the previous call, by phase (see `stopwatch.PHASES`); called once per step."""

    def checkpoint_resumed(self, step: int, damaged: int) -> None:
        """React to the search for a checkpoint, before the training begins.

        `step`: step of the checkpoint that this attempt resumes from, 0 if none is intact. `damaged`: damaged
        checkpoints that are newer.
        """

    def checkpoint_saved(self, step: int, seconds: float, size: int | None) -> None:
        """React to a complete checkpoint, on rank 0. `size`: in bytes; None if not known."""

    def checkpoint_failed(self, step: int) -> None:
        """React to a checkpoint that could not be written, on rank 0."""

    def checkpoint_stalled(self, seconds: float) -> None:
        """React to the end of a wait of the training for a checkpoint."""
