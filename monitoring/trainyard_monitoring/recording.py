"""Recording rules: one series for each job across its pods, so that alerts survive new pods and operators."""

from trainyard_monitoring.promql import JOB, ON_JOB, RUN, per_job
from trainyard_monitoring.rules import Record
from trainyard_monitoring.timing import Timing, duration


def recording_rules(timing: Timing) -> list[Record]:
    """Return the recording rules; later ones use earlier ones."""
    return [*_operator_side(timing), *_progress(timing), *_checkpoints(timing), *_runs(timing)]


def _operator_side(timing: Timing) -> list[Record]:
    gap = duration(timing.gap)
    restarts = per_job(f"last_over_time(trainyard_job_restarts_total[{gap}])", "max", "counted")
    return [
        # While the operator restarts, a job keeps its last condition.
        Record(
            "job:trainyard_job_condition:last",
            per_job(f"last_over_time(trainyard_job_condition[{gap}])", "max", "condition"),
        ),
        Record("job:trainyard_job_restarts:last", per_job(restarts, "sum")),
    ]


def _progress(timing: Timing) -> list[Record]:
    total = per_job(per_job("trainyard_step_duration_seconds_sum", "max", "phase"), "sum")
    return [
        # Steps decrease on a rollback and start at the checkpoint in a new attempt, so never take a rate of them.
        # The count of step durations starts at 0 in each attempt.
        Record("job:trainyard_steps:max", per_job("trainyard_steps_total")),
        Record(
            "job:trainyard_step_duration_seconds:mean",
            f"{total}\n/ {per_job('trainyard_step_duration_seconds_count')}",
        ),
        Record(
            "job:trainyard_last_step_timestamp_seconds:last",
            per_job(f"last_over_time(trainyard_last_step_timestamp_seconds[{duration(timing.stalled_memory)}])"),
        ),
    ]


def _checkpoints(timing: Timing) -> list[Record]:
    step, window = "job:trainyard_checkpoint_step:max", duration(timing.checkpoint_history)
    return [
        Record(step, per_job("trainyard_checkpoint_step")),
        # Both from one page and counted in steps, so that pauses and restarts do not make a checkpoint look old.
        Record("job:trainyard_unsaved_steps:max", per_job("trainyard_steps_total - trainyard_checkpoint_step")),
        Record(
            "job:trainyard_unsaved_seconds:max",
            f"job:trainyard_unsaved_steps:max * {ON_JOB} job:trainyard_step_duration_seconds:mean",
        ),
        # Absent until two checkpoints are known.
        Record(
            "job:trainyard_checkpoint_interval_steps:mean",
            f"({step} - min_over_time({step}[{window}]))\n/ (changes({step}[{window}]) > 0)\n> 0",
        ),
    ]


def _runs(timing: Timing) -> list[Record]:
    """Return the rules of level `run`: one series for each job and each set of labels of `trainyard_run_info`."""
    # Speed as model FLOP/s: tokens per second would drop with a larger model under the same job name.
    flops = "trainyard_tokens_per_second * trainyard_flops_total / trainyard_tokens_total"
    smooth = duration(timing.smooth)
    return [
        Record("run:trainyard_loss:max", _per_run("trainyard_loss")),
        Record("run:trainyard_loss:avg", f"avg_over_time(run:trainyard_loss:max[{smooth}])"),
        Record("run:trainyard_flops_per_second:max", _per_run(flops)),
        Record("run:trainyard_flops_per_second:avg", f"avg_over_time(run:trainyard_flops_per_second:max[{smooth}])"),
    ]


def _per_run(expression: str) -> str:
    """Add the labels of the run; your own programs do not report any."""
    info = f"max by ({JOB}, instance, {RUN}) (trainyard_run_info)"
    return (
        f"max by ({JOB}, {RUN}) (\n  ({expression})\n  * on ({JOB}, instance) group_left ({RUN}) {info}\n"
        f"  or ({expression}) unless on ({JOB}, instance) trainyard_run_info\n)"
    )
