"""Progress of a run: step, loss, throughput and the other figures that a worker reports to the operator."""

import math
from typing import Annotated

from pydantic import AfterValidator, Field

from trainyard.base import ApiModel, Count, Timestamp


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


Figure = Annotated[float | None, AfterValidator(_finite)]
"""A measured number. One that has overflowed is left out: JSON has no infinity, and the API server would refuse
the whole status for it."""


class Progress(ApiModel):
    """How far the training is, read from rank 0."""

    attempt: Count = 0
    """Attempt that these figures come from."""
    step: Count = 0
    """Optimizer steps done."""
    total_steps: Count | None = None
    """Optimizer steps in all."""
    loss: Figure = None
    """Training loss at the last report (mean over the global batch, in nats)."""
    eval_loss: Figure = None
    """Loss on the held-out samples, at the last evaluation."""
    metrics: Annotated[dict[str, float], Field(max_length=32)] | None = None
    """All figures of the last evaluation: loss, accuracy; of text perplexity; of classes precision, recall, f1."""
    learning_rate: Figure = None
    """Learning rate at the last report."""
    grad_norm: Figure = None
    """Global norm of the gradient before clipping, at the last report."""
    tokens_per_second: Figure = None
    """Throughput of all ranks together, since the report before."""
    samples_per_second: Figure = None
    """Samples per second of all ranks together."""
    mfu: Figure = None
    """Model FLOPs utilisation: share of what the devices could compute at most that went into training (Chowdhery et
    al., 2022); absent where that is not known, as on a CPU."""
    eta_seconds: Figure = None
    """Time that the remaining steps take at this speed."""
    checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint."""
    resumed_step: Count | None = None
    """Step of the checkpoint that this attempt has continued from."""
    checkpoints_damaged: Count | None = None
    """Newer checkpoints that this attempt has passed over, because they were damaged."""
    checkpoint_failures: Count | None = None
    """Checkpoints of this attempt that could not be written."""
    skipped_steps: Count | None = None
    """Steps of this attempt that have changed nothing, because their gradient was no use (spec.health.badSteps)."""
    last_skipped_step: Count | None = None
    """The last of them."""
    rollbacks: Count | None = None
    """How often this attempt has gone back to a checkpoint for such steps."""
    straggler_rank: Count | None = None
    """The slowest rank, if it is a straggler (spec.health.straggler)."""
    straggler_ratio: Figure = None
    """How many times as long as the median rank it takes for the same computation."""
    checkpoint_stall_seconds: Figure = None
    """Seconds that training has waited for checkpoints in this attempt."""
    updated_at: Timestamp | None = None
    """When these figures were read from the worker."""

    @property
    def steps_made(self) -> int:
        """Steps of this attempt itself, beyond the checkpoint that it has continued from."""
        return self.step - (self.resumed_step or 0)
