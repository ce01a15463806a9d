"""The time that a job has run, and spec.activeDeadlineSeconds, which limits it.

The job runs while all of its workers do. Periods that have ended are summed up in the status; the current one began
with the last transition of the condition Running. So the time survives restarts of the operator and suspensions.
"""

from datetime import datetime

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.actions import Plan, fail_job
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def account_running_time(before: TrainingJobStatus, after: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Return the status to write; if it ends a period in which all workers ran, with the seconds of that period.

    Args:
        before: the stored status.
        after: the status to write.
        now: the current time.
    """
    if after.is_true(C.RUNNING) or not (seconds := _seconds_of_period(before, now)):
        return after
    return after.replace(running_seconds=before.running_seconds + int(seconds))


def check_deadline(builder: StatusBuilder) -> Plan | None:
    """Return the plan that fails a job which has run for as long as it may; None for any other."""
    left = seconds_until_deadline(builder)
    if left is None or left > 0:
        return None
    limit = builder.effective_job.spec.active_deadline_seconds
    message = f"all workers have run for {limit} s in total (spec.activeDeadlineSeconds)"
    return fail_job(builder, Reason.DEADLINE_EXCEEDED, message)


def seconds_until_deadline(builder: StatusBuilder) -> float | None:
    """Return the seconds that the workers may still run; None if there is no limit."""
    limit, status = builder.effective_job.spec.active_deadline_seconds, builder.effective_job.status
    if limit is None:
        return None
    return limit - status.running_seconds - _seconds_of_period(status, builder.now)


def _seconds_of_period(status: TrainingJobStatus, now: datetime) -> float:
    """Return for how long all workers have been running; 0 if they do not."""
    running = status.condition(C.RUNNING)
    if running is None or running.status != "True":
        return 0.0
    return max(0.0, (now - running.last_transition_time).total_seconds())
