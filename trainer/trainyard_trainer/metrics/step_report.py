"""What a run says about itself: one report every logEverySteps, to the log, to Prometheus, to the last word."""

import math
from dataclasses import dataclass, field

from trainyard.protocol.progress import Progress


@dataclass(frozen=True)
class StepReport:
    """Figures of one optimizer step.

    As a JSON line on standard output it has, beside time (RFC 3339), level, message, job, attempt and rank, the
    fields of `trainyard.resource.status.Progress` (step, totalSteps, loss, learningRate, gradNorm, tokensPerSecond,
    samplesPerSecond, mfu, etaSeconds) and seconds. A figure that is not finite is left out.
    """

    step: int
    """Optimizer steps done, from 1."""
    total_steps: int
    loss: float
    """Mean over the tokens of this step's global batch, in nats per token, before the parameters changed."""
    learning_rate: float
    """That of this step."""
    grad_norm: float
    """Global norm of this step's gradient, before clipping."""
    tokens_per_second: float
    """All ranks together, since the report before."""
    samples_per_second: float
    """All ranks together, since the report before."""
    seconds: float
    """Since the first step of this attempt began."""
    steps: int
    """Steps in that time."""
    mfu: float | None = None
    """Model FLOPs utilisation since the report before (Chowdhery et al., 2022); None if the peak is not known."""
    compute: list[float] = field(default_factory=list)
    """Seconds that each rank takes for the same computation, by rank; empty if that is not measured."""
    stragglers: dict[int, float] = field(default_factory=dict)
    """Ranks that are too slow, and how many times as long as the median rank they take."""

    def progress(self, attempt: int) -> Progress:
        """The report in the words of the job's status."""
        steps_left = self.total_steps - self.step
        seconds_per_step = self.seconds / self.steps
        return Progress(
            attempt=attempt,
            step=self.step,
            total_steps=self.total_steps,
            loss=_finite(self.loss),
            learning_rate=self.learning_rate,
            grad_norm=_finite(self.grad_norm),
            tokens_per_second=round(self.tokens_per_second, 1),
            samples_per_second=round(self.samples_per_second, 3),
            mfu=None if self.mfu is None else round(self.mfu, 4),
            eta_seconds=round(steps_left * seconds_per_step, 1),
            straggler_rank=(slowest := max(self.stragglers, key=self.stragglers.__getitem__, default=None)),
            straggler_ratio=None if slowest is None else round(self.stragglers[slowest], 2),
        )

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  lr {self.learning_rate:.2e}  "
            f"norm {self.grad_norm:.3f}  {self.tokens_per_second:,.0f} tokens/s  "
            + (f"MFU {self.mfu:.1%}  " if self.mfu is not None else "")
            + f"{self.seconds:.1f} s"
        )


def _finite(figure: float) -> float | None:
    return figure if math.isfinite(figure) else None
