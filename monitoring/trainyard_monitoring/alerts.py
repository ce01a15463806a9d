"""Alerts on jobs. Each compares a job with what it says of itself, so that no value must be set for each job."""

from typing import Final

from trainyard_monitoring.promql import CONDITION, NOT_OVER, ON_JOB, RUNNING, STEPPING, increase, per_job
from trainyard_monitoring.rules import Alert
from trainyard_monitoring.timing import (
    DIVERGING_MARGIN,
    DIVERGING_RATIO,
    NONFINITE_STEPS,
    RESTARTS,
    SLOW_RATIO,
    STALE_INTERVALS,
    STALLED_STEPS,
    Timing,
    number,
    span,
)

NAME: Final = "{{ $labels.namespace }}/{{ $labels.job_name }}"
COUNT: Final = '{{ printf "%.0f" $value }}'
TIME: Final = "{{ humanizeDuration $value }}"
REASON: Final = (
    '{{ range printf "trainyard_job_last_failure_timestamp_seconds{namespace=%q,job_name=%q}"'
    " $labels.namespace $labels.job_name | query }}{{ .Labels.reason }}{{ end }}"
)
"""The reason of the last failure; nothing if there was none."""


def job_alerts(timing: Timing) -> list[Alert]:
    """Alerts on single jobs."""
    return [
        stalled(timing),
        non_finite(timing),
        diverging(timing),
        straggler(timing),
        restart_storm(timing),
        slow(timing),
        pending(timing),
        checkpoint_stale(timing),
        checkpoint_failing(timing),
        failed(timing),
    ]


def stalled(timing: Timing) -> Alert:
    """The last step is long ago by the clock, and by the job's own pace, which only the built-in trainer tells."""
    age = "(time() - job:trainyard_last_step_timestamp_seconds:last)"
    pace = f"last_over_time(job:trainyard_step_duration_seconds:mean[{span(timing.stalled_memory)}])"
    usual = f"unless {ON_JOB} {age} <= {ON_JOB} {STALLED_STEPS} * {pace}"
    return Alert(
        "TrainyardJobStalled",
        "critical",
        f"{age} > {number(timing.stalled_after)}\n{usual}\n{STEPPING}",
        timing.stalled_for,
        "A training job makes no steps",
        f"{NAME} runs, but its last step was {TIME} ago: more than {span(timing.stalled_after)}, and more than"
        f" {STALLED_STEPS} of its usual steps.",
    )


def non_finite(timing: Timing) -> Alert:
    """Gradients that are not numbers."""
    window = span(timing.nonfinite_window)
    return Alert(
        "TrainyardNonFiniteSteps",
        "warning",
        f"{increase('trainyard_nonfinite_steps_total', window)} >= {NONFINITE_STEPS}\n{NOT_OVER}",
        0,
        "A training job's gradient is not finite again and again",
        f"{NAME} had {COUNT} steps without a finite gradient within {window}. None of them has changed the model; too"
        " many in a row end the attempt.",
    )


def diverging(timing: Timing) -> Alert:
    """The loss is well above its own lowest, at steps that were never made before.

    So neither a restart from an old checkpoint nor one from the beginning counts, where the loss is higher for good
    reasons.
    """
    loss, steps, history = "run:trainyard_loss:avg", "job:trainyard_steps:max", span(timing.history)
    high = f"{loss} > {DIVERGING_RATIO} * min_over_time({loss}[{history}]) + {DIVERGING_MARGIN}"
    return Alert(
        "TrainyardLossDiverging",
        "warning",
        f"{per_job(high)}\nand {ON_JOB} {steps} >= max_over_time({steps}[{history}])\n{RUNNING}",
        timing.diverging_for,
        "A training job's loss rises",
        f'The loss of {NAME} was {{{{ printf "%.3f" $value }}}} on average over {span(timing.smooth)}: above'
        f" {DIVERGING_RATIO} times its lowest such mean of the last {history}, plus {DIVERGING_MARGIN}.",
    )


def straggler(timing: Timing) -> Alert:
    """The trainer has found a slow rank (spec.health.straggler)."""
    ratio = f"last_over_time(trainyard_straggler_ratio[{span(timing.gap)}])"
    return Alert(
        "TrainyardStraggler",
        "warning",
        f"{per_job(ratio, 'max', 'rank')}\n{RUNNING}",
        timing.straggler_for,
        "A rank of a training job is slow, and all others wait for it",
        f'Rank {{{{ $labels.rank }}}} of {NAME} takes {{{{ printf "%.2f" $value }}}} times as long as the median rank'
        " for the same computation.",
    )


def restart_storm(timing: Timing) -> Alert:
    """Restarts, of any kind. As a difference of sums: a new operator's series begin at the count of the old one's."""
    count, window = "job:trainyard_job_restarts:last", span(timing.restarts_window)
    return Alert(
        "TrainyardRestartStorm",
        "warning",
        f"{count} - min_over_time({count}[{window}]) >= {RESTARTS}\n{NOT_OVER}",
        0,
        "A training job restarts again and again",
        f"{NAME} was restarted {COUNT} times within {window}; reason of the last failure: {REASON}.",
    )


def slow(timing: Timing) -> Alert:
    """Throughput, in FLOPs of the model, below what the job had before on the same layout and devices."""
    speed = "run:trainyard_flops_per_second:avg"
    usual = f"quantile_over_time(0.5, {speed}[{span(timing.history)}] offset {span(timing.slow_lag)})"
    return Alert(
        "TrainyardThroughputDropped",
        "warning",
        f"{per_job(f'{speed} / {usual}')} < {SLOW_RATIO}\n{STEPPING}",
        timing.slow_for,
        "A training job is slower than it was",
        f"{NAME} trains at {{{{ humanizePercentage $value }}}} of the speed that it usually had in the last"
        f" {span(timing.history)}, on the same layout and devices.",
    )


def pending(timing: Timing) -> Alert:
    """The operator counts for how long a job that should run does not."""
    return Alert(
        "TrainyardJobPendingTooLong",
        "warning",
        f"{per_job(f'last_over_time(trainyard_job_pending_seconds[{span(timing.gap)}])')}"
        f" > {number(timing.pending_after)}",
        timing.pending_for,
        "A training job waits for its workers",
        f"{NAME} should run, but has not had all of its workers for {TIME}.",
    )


def checkpoint_stale(timing: Timing) -> Alert:
    """Training that a crash would lose: more than some usual intervals, or too much where none is usual yet.

    Pods that are gone have no such series, so a job that does not run needs no exception.
    """
    unsaved, interval = "job:trainyard_unsaved_seconds:max", "job:trainyard_checkpoint_interval_steps:mean"
    late = f"job:trainyard_unsaved_steps:max > {ON_JOB} {STALE_INTERVALS} * {interval}"
    return Alert(
        "TrainyardCheckpointStale",
        "warning",
        f"{unsaved} > {number(timing.checkpoint_floor)} and {ON_JOB} ({late})\n"
        f"or {unsaved} > {number(timing.checkpoint_fallback)} unless {ON_JOB} {interval}",
        timing.checkpoint_for,
        "A training job has not saved for too long",
        f"A crash of {NAME} would lose {TIME} of training: more than {STALE_INTERVALS} of its usual intervals between"
        f" checkpoints (or than {span(timing.checkpoint_fallback)}, where none is known).",
    )


def checkpoint_failing(timing: Timing) -> Alert:
    """Checkpoints that could not be written."""
    window = span(timing.save_failures_window)
    return Alert(
        "TrainyardCheckpointFailing",
        "warning",
        f"{increase('trainyard_checkpoint_failures_total', window)} > 0\n{NOT_OVER}",
        0,
        "A training job cannot write its checkpoints",
        f"{NAME} could not write {COUNT} of its checkpoints within {window}. Training goes on, and what it does is not"
        " safe.",
    )


def failed(timing: Timing) -> Alert:
    """The job has ended, for the worse, and nobody has cleaned up for less than a day."""
    over = f'{CONDITION}{{condition="Failed"}}'
    before = f"{over} offset {span(timing.failed_kept)} == 1"
    return Alert(
        "TrainyardJobFailed",
        "warning",
        f"{per_job(f'{over} == 1')}\nunless {ON_JOB} {before}",
        0,
        "A training job has failed",
        f"{NAME} has failed for good; reason of the last failure: {REASON}. It holds no pods any more.",
    )
