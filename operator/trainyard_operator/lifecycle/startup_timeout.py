"""A group that runs and makes no step: when that is a failure. Acting on it is the plan's."""

from datetime import datetime, timedelta

from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.resource.health import startup_timeout
from trainyard.resource.status import ConditionType, Failure, Reason, TrainingJobStatus
from trainyard_operator.lifecycle.diagnosis import Diagnosis
from trainyard_operator.lifecycle.status_builder import Draft


def has_stepped(status: TrainingJobStatus) -> bool:
    """Whether the current attempt is known to have made a step of its own."""
    progress = status.progress
    return progress is not None and progress.attempt == status.attempt and progress.steps_made > 0


def first_step_due(draft: Draft) -> datetime | None:
    """When a running attempt must have made its first step; None if it has, or if nobody reports steps."""
    running = draft.status.condition(ConditionType.RUNNING)
    if draft.job.spec.trainer is None or running is None or running.status != "True" or has_stepped(draft.status):
        return None
    return running.last_transition_time + timedelta(seconds=startup_timeout(draft.job.spec.health))


def judge_startup(draft: Draft, read: Progress | None) -> Diagnosis | None:
    """A failure, if the first step is overdue and that has been seen.

    That no step is known is no evidence: the operator may be unable to reach the metrics page of a group that trains
    well. It takes a page of this attempt, read when the time was over already, that shows no step.
    """
    due, attempt = first_step_due(draft), draft.status.attempt
    if due is None or read is None or read.attempt != attempt:
        return None
    if read.steps_made > 0 or read.updated_at is None or read.updated_at < due:
        return None
    seconds = startup_timeout(draft.job.spec.health)
    message = f"no step within {seconds} s since all workers run (spec.health.startupTimeoutSeconds)"
    failure = Failure(attempt=attempt, reason=Reason.STARTUP_TIMEOUT, message=message, at=draft.now)
    return Diagnosis(failure, counts=True)


def tell_startup(draft: Draft, read: Progress | None) -> str:
    """Where an attempt stands that is not known to have made a step."""
    due, attempt = first_step_due(draft), draft.status.attempt
    if due is None or draft.now < due or (read is not None and read.attempt == attempt):
        return f"attempt {attempt} has not finished its first step yet"
    return (
        f"attempt {attempt}: whether it makes steps is not known, since rank 0's metrics page cannot be read, and so "
        f"spec.health.startupTimeoutSeconds is not enforced; let the operator reach port {constants.METRICS_PORT} of "
        "the pods"
    )
