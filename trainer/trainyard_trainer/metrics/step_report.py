"""The report that a run makes every logEverySteps steps: to the log, the metrics page and experiment trackers."""

from dataclasses import dataclass, field

from trainyard.protocol import worker_metrics
from trainyard.protocol.progress import Progress, progress_fields


@dataclass(frozen=True)
class StepReport:
    """Measurements of one optimizer step.

    An attribute with the name of a field of status.progress reaches the log, the metrics page and the trackers by the
    table `trainyard.protocol.worker_metrics`. As a JSON line on standard output, a report has time (RFC 3339), level,
    message, job, attempt, rank and seconds besides these fields (step, totalSteps, loss, learningRate, gradNorm,
    epsilon, tokensPerSecond, samplesPerSecond, mfu, etaSeconds). A value that is NaN or Inf is left out of the line.
    """

    step: int
    """Number of the step, from 1: optimizer steps done."""
    total_steps: int
    """Optimizer steps planned in total."""
    loss: float
    """Loss of this step: mean over the tokens of its global batch, in nats per token, before the update."""
    learning_rate: float
    """Learning rate of this step."""
    grad_norm: float
    """Global norm of this step's gradient, before clipping."""
    tokens_per_second: float
    """Tokens per second of all ranks together, since the previous report."""
    samples_per_second: float
    """Samples per second of all ranks together, since the previous report."""
    seconds: float
    """Seconds since this attempt began its first step."""
    steps: int
    """Steps of this attempt, done in `seconds`."""
    epsilon: float | None = None
    """Epsilon that the run has spent; None without spec.trainer.privacy."""
    mfu: float | None = None
    """Model FLOPs utilization since the previous report (Chowdhery et al., 2022); None if the peak is not known."""
    compute: list[float] = field(default_factory=list)
    """Seconds for the same small computation, by rank [world size]; empty if that is not measured."""
    expert_loads: list[float] = field(default_factory=list)
    """Rows of the most loaded expert divided by the mean of all experts, by layer; empty without experts."""
    stragglers: dict[int, float] = field(default_factory=dict)
    """Ranks that are too slow, with their time for that computation divided by the median rank's."""

    @property
    def straggler_rank(self) -> int | None:
        """The slowest straggler; None without one."""
        return max(self.stragglers, key=self.stragglers.__getitem__, default=None)

    @property
    def straggler_ratio(self) -> float | None:
        """Slowdown of the slowest straggler; None without one."""
        return max(self.stragglers.values(), default=None)

    def values(self) -> dict[str, float]:
        """Return the measurements that the table of worker metrics has a field for, by field."""
        fields = [name for metric in worker_metrics.METRICS for name in (metric.field, metric.rank_field) if name]
        found = {name: getattr(self, name, None) for name in fields}
        return {name: value for name, value in found.items() if value is not None}

    def tracked(self) -> dict[str, float]:
        """Return the measurements for experiment trackers, by the trackers' names."""
        values = self.values()
        return {m.tracker_name: values[m.field] for m in worker_metrics.METRICS if m.tracker_name and m.field in values}

    def progress(self, attempt: int) -> Progress:
        """Return the report as the job's status holds it, with the rounding of the log."""
        remaining_steps = self.total_steps - self.step
        seconds_per_step = self.seconds / self.steps
        fields = {**progress_fields(self.values()), "attempt": attempt}
        return Progress.model_validate({**fields, "eta_seconds": round(remaining_steps * seconds_per_step, 1)})

    def __str__(self) -> str:
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  lr {self.learning_rate:.2e}  "
            f"norm {self.grad_norm:.3f}  {self.tokens_per_second:,.0f} tokens/s  "
            + (f"MFU {self.mfu:.1%}  " if self.mfu is not None else "")
            + f"{self.seconds:.1f} s"
        )
