"""status.progress: step, loss, throughput and the other values that a worker reports to the operator.

Names, descriptions and rounding of the values are those of `trainyard.protocol.worker_metrics`.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field

from trainyard.base import ApiModel, Count, Rule, Timestamp
from trainyard.protocol import worker_metrics
from trainyard.protocol.worker_metrics import WorkerMetric


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


Measurement = Annotated[float | None, AfterValidator(_finite)]
"""A measured number. NaN and Inf are left out: JSON has neither, and the API server would refuse the whole status."""

MAX_METRICS: Final = 32
"""Evaluation metrics that the status holds."""
METRIC_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,63}")
"""Names of evaluation metrics that the status holds."""


def _storable(metrics: dict[str, float] | None) -> dict[str, float] | None:
    """Return the first `MAX_METRICS` finite values with a valid name; what a program calls them is up to it."""
    if metrics is None:
        return None
    valid = {name: v for name, v in metrics.items() if math.isfinite(v) and METRIC_NAME.fullmatch(name)}
    return dict(list(valid.items())[:MAX_METRICS]) or None


EvaluationMetrics = Annotated[
    dict[str, float] | None, AfterValidator(_storable), Field(json_schema_extra={"maxProperties": MAX_METRICS})
]
"""Evaluation metrics by name. Values that a status cannot hold are left out."""


def _described(metric: WorkerMetric) -> Any:
    return Field(description=metric.help)


class Progress(ApiModel):
    """How far the training is, as rank 0 reports it."""

    attempt: Annotated[Count, _described(worker_metrics.ATTEMPT)] = 0
    step: Annotated[Count, _described(worker_metrics.STEP)] = 0
    total_steps: Annotated[Count | None, _described(worker_metrics.TOTAL_STEPS)] = None
    data_prepared: Annotated[Measurement, _described(worker_metrics.DATA_PREPARED)] = None
    data_preparation_seconds: Annotated[Measurement, _described(worker_metrics.DATA_PREPARATION)] = None
    loss: Annotated[Measurement, _described(worker_metrics.LOSS)] = None
    eval_loss: Measurement = None
    """Loss on the held-out samples, at the last evaluation."""
    metrics: Annotated[EvaluationMetrics, _described(worker_metrics.EVALUATION)] = None
    learning_rate: Annotated[Measurement, _described(worker_metrics.LEARNING_RATE)] = None
    grad_norm: Annotated[Measurement, _described(worker_metrics.GRAD_NORM)] = None
    epsilon: Annotated[Measurement, _described(worker_metrics.PRIVACY_EPSILON)] = None
    tokens_per_second: Annotated[Measurement, _described(worker_metrics.TOKENS_PER_SECOND)] = None
    samples_per_second: Annotated[Measurement, _described(worker_metrics.SAMPLES_PER_SECOND)] = None
    mfu: Annotated[Measurement, _described(worker_metrics.MFU)] = None
    eta_seconds: Measurement = None
    """Estimated time to completion: seconds that the remaining steps take at the current throughput."""
    checkpoint_step: Annotated[Count | None, _described(worker_metrics.CHECKPOINT_STEP)] = None
    resumed_step: Annotated[Count | None, _described(worker_metrics.RESUMED_STEP)] = None
    checkpoints_damaged: Annotated[Count | None, _described(worker_metrics.CHECKPOINTS_DAMAGED)] = None
    checkpoint_failures: Annotated[Count | None, _described(worker_metrics.CHECKPOINT_FAILURES)] = None
    skipped_steps: Annotated[Count | None, _described(worker_metrics.SKIPPED_STEPS)] = None
    last_skipped_step: Annotated[Count | None, _described(worker_metrics.LAST_SKIPPED_STEP)] = None
    rollbacks: Annotated[Count | None, _described(worker_metrics.ROLLBACKS)] = None
    straggler_rank: Count | None = None
    """Rank of the slowest straggler (spec.health.straggler); absent while no rank is slow."""
    straggler_ratio: Annotated[Measurement, _described(worker_metrics.STRAGGLER_RATIO)] = None
    checkpoint_stall_seconds: Annotated[Measurement, _described(worker_metrics.CHECKPOINT_STALL)] = None
    updated_at: Timestamp | None = None
    """When the operator read these values from the worker."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.metrics) || self.metrics.all(name, size(name) <= 63)",
            "status.progress.metrics: a name must have at most 63 characters; choose a shorter one",
        ),
    )

    @property
    def steps_made(self) -> int:
        """Steps of this attempt itself, beyond the checkpoint it resumed from."""
        return self.step - (self.resumed_step or 0)


def progress_fields(
    values: Mapping[str, float], rounded: Callable[[WorkerMetric, float], float] = WorkerMetric.rounded
) -> dict[str, float]:
    """Return the fields of `Progress` for measured values.

    NaN and Inf are left out, as are counts of problems while they are 0. Integers become integers, all else is rounded.

    Args:
        values: measured values by field; others than the fields in the table of metrics are ignored.
        rounded: rounds the value of a metric.
    """
    fields: dict[str, float] = {}
    for metric in worker_metrics.METRICS:
        value = values.get(metric.field) if metric.field is not None else None
        if metric.field is not None and value is not None and math.isfinite(value) and (value or not metric.omit_zero):
            fields[metric.field] = int(value) if metric.integer else rounded(metric, value)
        if metric.rank_field is not None and metric.rank_field in values:
            fields[metric.rank_field] = int(values[metric.rank_field])
    return fields
