"""Alerts on jobs. Each compares a job with its own history, so that no threshold must be set per job."""

from typing import Final

from trainyard_monitoring.promql import CONDITION, NOT_FINISHED, ON_JOB, RUNNING, STEPPING, increase, per_job
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
    duration,
    number,
)

NAME: Final = "{{ $labels.namespace }}/{{ $labels.job_name }}"
COUNT: Final = '{{ printf "%.0f" $value }}'
TIME: Final = "{{ humanizeDuration $value }}"
REASON: Final = (
    '{{ range printf "trainyard_job_last_failure_timestamp_seconds{namespace=%q,job_name=%q}"'
    " $labels.namespace $labels.job_name | query }}{{ .Labels.reason }}{{ end }}"
)
"""Template of the reason of the last failure; empty without one."""


def job_alerts(timing: Timing) -> list[Alert]:
    """Return the alerts on single jobs."""
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
    """Alert on a last step that is too old by the clock and by the job's own step time (built-in trainer only)."""
    age = "(time() - job:trainyard_last_step_timestamp_seconds:last)"
    pace = f"last_over_time(job:trainyard_step_duration_seconds:mean[{duration(timing.stalled_memory)}])"
    usual = f"unless {ON_JOB} {age} <= {ON_JOB} {STALLED_STEPS} * {pace}"
    return Alert(
        "TrainyardJobStalled",
        "critical",
        f"{age} > {number(timing.stalled_after)}\n{usual}\n{STEPPING}",
        timing.stalled_for,
        "A training job is stalled",
        f"{NAME} runs, but its last step was {TIME} ago: more than {duration(timing.stalled_after)}, and more than"
        f" {STALLED_STEPS} of its usual steps.",
    )


def non_finite(timing: Timing) -> Alert:
    """Alert on gradients with NaN or Inf."""
    window = duration(timing.nonfinite_window)
    return Alert(
        "TrainyardNonFiniteSteps",
        "warning",
        f"{increase('trainyard_nonfinite_steps_total', window)} >= {NONFINITE_STEPS}\n{NOT_FINISHED}",
        0,
        "A training job repeatedly has NaN or Inf gradients",
        f"{NAME} had {COUNT} steps with a NaN or Inf gradient within {window}. They were skipped; too many"
        " consecutive ones end the attempt.",
    )


def diverging(timing: Timing) -> Alert:
    """Alert on a loss well above its own minimum, at steps that the job reaches for the first time.

    Restarts from an old checkpoint or from scratch do not count: there a higher loss is expected.
    """
    loss, steps, history = "run:trainyard_loss:avg", "job:trainyard_steps:max", duration(timing.history)
    high = f"{loss} > {DIVERGING_RATIO} * min_over_time({loss}[{history}]) + {DIVERGING_MARGIN}"
    return Alert(
        "TrainyardLossDiverging",
        "warning",
        f"{per_job(high)}\nand {ON_JOB} {steps} >= max_over_time({steps}[{history}])\n{RUNNING}",
        timing.diverging_for,
        "A training job's loss is diverging",
        f'The loss of {NAME} was {{{{ printf "%.3f" $value }}}} on average over {duration(timing.smooth)}: above'
        f" {DIVERGING_RATIO} times its lowest such mean of the last {history}, plus {DIVERGING_MARGIN}.",
    )


def straggler(timing: Timing) -> Alert:
    """Alert on a straggler that the trainer has found (spec.health.straggler)."""
    ratio = f"last_over_time(trainyard_straggler_ratio[{duration(timing.gap)}])"
    return Alert(
        "TrainyardStraggler",
        "warning",
        f"{per_job(ratio, 'max', 'rank')}\n{RUNNING}",
        timing.straggler_for,
        "A rank of a training job is a straggler; all others wait for it",
        f'Rank {{{{ $labels.rank }}}} of {NAME} takes {{{{ printf "%.2f" $value }}}} times as long as the median rank'
        " for the same computation.",
    )


def restart_storm(timing: Timing) -> Alert:
    """Alert on many restarts of any kind.

    It is a difference of sums, because the series of a new operator begin with the count of the old operator.
    """
    count, window = "job:trainyard_job_restarts:last", duration(timing.restarts_window)
    return Alert(
        "TrainyardRestartStorm",
        "warning",
        f"{count} - min_over_time({count}[{window}]) >= {RESTARTS}\n{NOT_FINISHED}",
        0,
        "A training job restarts repeatedly",
        f"{NAME} was restarted {COUNT} times within {window}; reason of the last failure: {REASON}.",
    )


def slow(timing: Timing) -> Alert:
    """Alert on a model FLOP/s rate below the job's own median with the same layout and devices."""
    speed = "run:trainyard_flops_per_second:avg"
    usual = f"quantile_over_time(0.5, {speed}[{duration(timing.history)}] offset {duration(timing.slow_lag)})"
    return Alert(
        "TrainyardThroughputDropped",
        "warning",
        f"{per_job(f'{speed} / {usual}')} < {SLOW_RATIO}\n{STEPPING}",
        timing.slow_for,
        "A training job's throughput has dropped",
        f"{NAME} trains at {{{{ humanizePercentage $value }}}} of its usual throughput of the last"
        f" {duration(timing.history)}, on the same layout and devices.",
    )


def pending(timing: Timing) -> Alert:
    """Alert on a job that has been without all of its workers for too long, as the operator measures it."""
    return Alert(
        "TrainyardJobPendingTooLong",
        "warning",
        f"{per_job(f'last_over_time(trainyard_job_pending_seconds[{duration(timing.gap)}])')}"
        f" > {number(timing.pending_after)}",
        timing.pending_for,
        "A training job is waiting for workers",
        f"{NAME} should be running, but has not had all of its workers for {TIME}.",
    )


def checkpoint_stale(timing: Timing) -> Alert:
    """Alert on unsaved training: more than some usual checkpoint intervals, or a fixed time while none is known.

    Pods that are gone have no such series, so jobs that do not run need no exception.
    """
    unsaved, interval = "job:trainyard_unsaved_seconds:max", "job:trainyard_checkpoint_interval_steps:mean"
    late = f"job:trainyard_unsaved_steps:max > {ON_JOB} {STALE_INTERVALS} * {interval}"
    return Alert(
        "TrainyardCheckpointStale",
        "warning",
        f"{unsaved} > {number(timing.checkpoint_floor)} and {ON_JOB} ({late})\n"
        f"or {unsaved} > {number(timing.checkpoint_fallback)} unless {ON_JOB} {interval}",
        timing.checkpoint_for,
        "A training job's last checkpoint is too old",
        f"A crash of {NAME} would lose {TIME} of training: more than {STALE_INTERVALS} of its usual intervals between"
        f" checkpoints (or more than {duration(timing.checkpoint_fallback)}, where none is known).",
    )


def checkpoint_failing(timing: Timing) -> Alert:
    """Alert on checkpoints that could not be written."""
    window = duration(timing.save_failures_window)
    return Alert(
        "TrainyardCheckpointFailing",
        "warning",
        f"{increase('trainyard_checkpoint_failures_total', window)} > 0\n{NOT_FINISHED}",
        0,
        "A training job fails to write checkpoints",
        f"{NAME} failed to write {COUNT} of its checkpoints within {window}. Training continues, but its"
        " progress is not saved.",
    )


def failed(timing: Timing) -> Alert:
    """Alert on a failed job, for a day or until it is deleted."""
    failed_jobs = f'{CONDITION}{{condition="Failed"}}'
    before = f"{failed_jobs} offset {duration(timing.failed_kept)} == 1"
    return Alert(
        "TrainyardJobFailed",
        "warning",
        f"{per_job(f'{failed_jobs} == 1')}\nunless {ON_JOB} {before}",
        0,
        "A training job has failed",
        f"{NAME} has failed; reason of the last failure: {REASON}. It no longer runs any pods.",
    )
