"""The metrics of workers, in one table: name, kind and help text of each metric, and where its value goes.

The built-in trainer and `trainyard.reporter` serve these metrics; the operator reads those with a `field` into
status.progress; experiment trackers get those with a `tracker_name`; docs/monitoring.md lists all of them. A new metric
is a new entry here, and for status.progress a field of `trainyard.protocol.progress.Progress`; besides them only the
code that measures it changes. This module needs the standard library only: it runs in images of users, too.
"""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Final, Literal


@dataclass(frozen=True)
class WorkerMetric:
    """One metric on the page that a worker serves."""

    name: str
    """Name on the page; with `open_ended` the prefix of the names."""
    kind: Literal["gauge", "counter", "summary"]
    help: str
    """What the value is, with its unit: HELP on the page, description of the field, text in the documentation."""
    field: str | None = None
    """Field of status.progress, by its name in Python; None: the status does not hold the value."""
    _: KW_ONLY
    labels: tuple[str, ...] = ()
    """Labels besides namespace and job_name."""
    rank_field: str | None = None
    """With the label rank: `field` holds the largest value of any rank, and this field holds that rank."""
    open_ended: bool = False
    """A family of gauges with one name each, which are not known in advance; `field` holds them as a map by name."""
    integer: bool = False
    """Whether the value is an integer."""
    decimals: int | None = None
    """Decimal places in the log and in the termination message; None: all."""
    omit_zero: bool = False
    """Whether the status leaves the value out while it is 0, as for counts of problems."""
    tracker_name: str | None = None
    """Name for experiment trackers (TensorBoard, MLflow, Weights & Biases); None: they do not get the value."""
    every_pod: bool = False
    """Whether every pod serves the metric; all other metrics are served by the pod of rank 0 alone."""

    def rounded(self, value: float) -> float:
        """Return the value with the decimal places of the log and the termination message."""
        return value if self.decimals is None else round(value, self.decimals)

    def named(self, name: str) -> "WorkerMetric":
        """Return one gauge of an open-ended family; `name` is what follows the prefix, for example "accuracy"."""
        assert self.open_ended, f"{self.name} is a single metric"
        family = self.help.partition(":")[0]
        return replace(self, name=f"{self.name}{name}", help=f"{family}: {name}.", open_ended=False)


RUN_INFO: Final = WorkerMetric(
    "trainyard_run_info",
    "gauge",
    "Always 1; the labels describe the run.",
    labels=("version", "model", "mesh", "device", "world_size"),
)
ATTEMPT: Final = WorkerMetric(
    "trainyard_attempt", "gauge", "Attempt that these metrics belong to.", "attempt", integer=True
)
STEP: Final = WorkerMetric(
    "trainyard_steps_total",
    "counter",
    "Optimizer steps done; an attempt that resumes from a checkpoint continues from its step.",
    "step",
    integer=True,
)
TOTAL_STEPS: Final = WorkerMetric(
    "trainyard_planned_steps", "gauge", "Optimizer steps planned in total.", "total_steps", integer=True
)
RESUMED_STEP: Final = WorkerMetric(
    "trainyard_resumed_step",
    "gauge",
    "Step of the checkpoint this attempt resumed from.",
    "resumed_step",
    integer=True,
)
DATA_PREPARED: Final = WorkerMetric(
    "trainyard_data_prepared_ratio",
    "gauge",
    "Share of the data that is tokenized, before the first step; absent if nothing has to be prepared.",
    "data_prepared",
    decimals=3,
)
DATA_PREPARATION: Final = WorkerMetric(
    "trainyard_data_preparation_seconds",
    "gauge",
    "Seconds of this attempt in which data was prepared, up to the last progress; spec.health.startupTimeoutSeconds"
    " does not count them.",
    "data_preparation_seconds",
    decimals=1,
)
TOKENS: Final = WorkerMetric("trainyard_tokens_total", "counter", "Tokens trained on, over all ranks.")
SAMPLES: Final = WorkerMetric("trainyard_samples_total", "counter", "Samples trained on, over all ranks.")
FLOPS: Final = WorkerMetric(
    "trainyard_flops_total",
    "counter",
    "Floating-point operations of the model, forward and backward, over all ranks.",
)
EPOCH: Final = WorkerMetric(
    "trainyard_epoch", "gauge", "Passes over the training samples, including the share done of the current one."
)
LOSS: Final = WorkerMetric(
    "trainyard_loss",
    "gauge",
    "Training loss at the last report: mean over the global batch, in nats (per token, for text).",
    "loss",
    tracker_name="train/loss",
)
LEARNING_RATE: Final = WorkerMetric(
    "trainyard_learning_rate",
    "gauge",
    "Learning rate at the last report.",
    "learning_rate",
    tracker_name="train/learning_rate",
)
GRAD_NORM: Final = WorkerMetric(
    "trainyard_grad_norm",
    "gauge",
    "Global norm of the gradient before clipping, at the last report.",
    "grad_norm",
    tracker_name="train/grad_norm",
)
PRIVACY_EPSILON: Final = WorkerMetric(
    "trainyard_privacy_epsilon",
    "gauge",
    "Epsilon that the run has spent up to the last report (spec.trainer.privacy), earlier attempts included.",
    "epsilon",
    decimals=4,
    tracker_name="train/epsilon",
)
TOKENS_PER_SECOND: Final = WorkerMetric(
    "trainyard_tokens_per_second",
    "gauge",
    "Tokens per second of all ranks together, since the previous report.",
    "tokens_per_second",
    decimals=1,
    tracker_name="train/tokens_per_second",
)
SAMPLES_PER_SECOND: Final = WorkerMetric(
    "trainyard_samples_per_second",
    "gauge",
    "Samples per second of all ranks together, since the previous report.",
    "samples_per_second",
    decimals=3,
    tracker_name="train/samples_per_second",
)
MFU: Final = WorkerMetric(
    "trainyard_mfu_ratio",
    "gauge",
    "Model FLOPs utilization (Chowdhery et al., 2022): share of the devices' peak FLOP/s that the model's"
    " computation uses; absent where the peak is not known, as on a CPU.",
    "mfu",
    decimals=4,
    tracker_name="train/mfu",
)
EVALUATION: Final = WorkerMetric(
    "trainyard_eval_",
    "gauge",
    "Metrics of the last evaluation on held-out samples: loss and accuracy; of text also perplexity; of a table also"
    " precision, recall and f1.",
    "metrics",
    open_ended=True,
)
STEP_DURATION: Final = WorkerMetric(
    "trainyard_step_duration_seconds",
    "summary",
    "Wall time of the training loop on rank 0 by phase (data, passes, update, checkpoint, evaluation, other); the"
    " phases add up to it. A GPU may lag behind by up to one report, so only means over several reports are"
    " meaningful.",
    labels=("phase",),
)
STEP_PART: Final = WorkerMetric(
    "trainyard_step_part_ratio",
    "gauge",
    "Share of each part (compute, overlap, communication, other) in the most recently traced step of rank 0; the"
    " parts add up to 1.",
    labels=("part",),
)
CHECKPOINT_STEP: Final = WorkerMetric(
    "trainyard_checkpoint_step",
    "gauge",
    "Step of the newest complete checkpoint.",
    "checkpoint_step",
    integer=True,
)
CHECKPOINT_TIME: Final = WorkerMetric(
    "trainyard_checkpoint_timestamp_seconds",
    "gauge",
    "Unix time at which the newest checkpoint of this attempt was complete.",
)
CHECKPOINT_DURATION: Final = WorkerMetric(
    "trainyard_checkpoint_duration_seconds", "gauge", "Seconds that writing the newest checkpoint took."
)
CHECKPOINT_SIZE: Final = WorkerMetric(
    "trainyard_checkpoint_bytes", "gauge", "Size of the newest checkpoint, all files together."
)
CHECKPOINT_STALL: Final = WorkerMetric(
    "trainyard_checkpoint_stall_seconds_total",
    "counter",
    "Seconds that training waited for checkpoints in this attempt.",
    "checkpoint_stall_seconds",
    decimals=3,
)
CHECKPOINT_FAILURES: Final = WorkerMetric(
    "trainyard_checkpoint_failures_total",
    "counter",
    "Checkpoints that this attempt failed to write.",
    "checkpoint_failures",
    integer=True,
    omit_zero=True,
)
CHECKPOINTS_DAMAGED: Final = WorkerMetric(
    "trainyard_checkpoints_damaged",
    "gauge",
    "Newer checkpoints that this attempt skipped when it resumed, because they are damaged.",
    "checkpoints_damaged",
    integer=True,
    omit_zero=True,
)
NON_FINITE_STEPS: Final = WorkerMetric(
    "trainyard_nonfinite_steps_total",
    "counter",
    "Steps of this attempt that were skipped because the norm of the gradient was NaN or Inf.",
)
SKIPPED_STEPS: Final = WorkerMetric(
    "trainyard_skipped_steps_total",
    "counter",
    "Steps of this attempt that were skipped because the gradient was not finite or spiked (spec.health.badSteps).",
    "skipped_steps",
    integer=True,
    omit_zero=True,
)
LAST_SKIPPED_STEP: Final = WorkerMetric(
    "trainyard_last_skipped_step",
    "gauge",
    "The most recently skipped step (spec.health.badSteps).",
    "last_skipped_step",
    integer=True,
    omit_zero=True,
)
ROLLBACKS: Final = WorkerMetric(
    "trainyard_rollbacks_total",
    "counter",
    "Rollbacks of this attempt to a checkpoint because of bad steps (spec.health.badSteps).",
    "rollbacks",
    integer=True,
    omit_zero=True,
)
RANK_COMPUTE: Final = WorkerMetric(
    "trainyard_rank_compute_seconds",
    "gauge",
    "Seconds that each rank takes for the same small computation without communication (spec.health.straggler).",
    labels=("rank",),
)
STRAGGLER_RATIO: Final = WorkerMetric(
    "trainyard_straggler_ratio",
    "gauge",
    "Slowdown of a straggler: its time for the same small computation, divided by that of the median rank"
    " (spec.health.straggler); absent while no rank is slow.",
    "straggler_ratio",
    labels=("rank",),
    rank_field="straggler_rank",
    decimals=2,
)
EXPERT_LOAD: Final = WorkerMetric(
    "trainyard_expert_load_ratio",
    "gauge",
    "Load of the most loaded expert of each layer of a moe, divided by the mean of all experts, since the previous"
    " report: 1 if the load is even.",
    labels=("layer",),
)
LAST_STEP_TIME: Final = WorkerMetric(
    "trainyard_last_step_timestamp_seconds",
    "gauge",
    "Unix time at which the pod finished its last optimizer step.",
    every_pod=True,
)
MEMORY: Final = WorkerMetric(
    "trainyard_memory_bytes",
    "gauge",
    "Memory of each rank by kind: resident (host); with a GPU also allocated, reserved and peak (torch's allocator).",
    labels=("rank", "kind"),
    every_pod=True,
)

METRICS: tuple[WorkerMetric, ...] = tuple(
    entry for entry in list(globals().values()) if isinstance(entry, WorkerMetric)
)
"""All entries of this module, in their order."""


def gauges_by_field() -> dict[str, WorkerMetric]:
    """Return the gauges with a single value (no labels of their own) that status.progress holds, by field."""
    single = (metric for metric in METRICS if metric.kind == "gauge" and not metric.labels and not metric.open_ended)
    return {metric.field: metric for metric in single if metric.field is not None}
