"""The startup timeout: when a group that runs without making a step has failed."""

from datetime import datetime, timedelta

from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.resource.health import startup_timeout
from trainyard.resource.status import ConditionType, Failure, Reason
from trainyard_operator.lifecycle.diagnosis import Diagnosis
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def has_stepped(progress: Progress | None, attempt: int) -> bool:
    """Return whether progress shows that the attempt itself has made a step."""
    return progress is not None and progress.attempt == attempt and progress.steps_made > 0


def first_step_deadline(builder: StatusBuilder) -> datetime | None:
    """Return when the running attempt must have made its first step; None if no deadline applies.

    None applies once the attempt has made a step, while not all workers run, and to a user's own program, which need
    not report steps.
    """
    running, job = builder.condition(ConditionType.RUNNING), builder.effective_job
    if job.spec.trainer is None or running is None or running.status != "True":
        return None
    if has_stepped(builder.progress, builder.attempt):
        return None
    return running.last_transition_time + timedelta(seconds=startup_timeout(job.spec.health))


def check_startup_timeout(builder: StatusBuilder, progress: Progress | None) -> Diagnosis | None:
    """Return a failure if the deadline of the first step has passed and a metrics page proves that none was made.

    A missing page is no proof: the operator may be unable to reach the metrics page of a healthy group. The proof is a
    page of this attempt, read after the deadline, that shows no step.
    """
    deadline, attempt = first_step_deadline(builder), builder.attempt
    # No deadline applies, or no page of this attempt was ever read.
    if deadline is None or progress is None or progress.attempt != attempt:
        return None
    # The page shows a step, or was read before the deadline.
    if progress.steps_made > 0 or progress.updated_at is None or progress.updated_at < deadline:
        return None
    seconds = startup_timeout(builder.effective_job.spec.health)
    message = f"no step within {seconds} s after all workers were running (spec.health.startupTimeoutSeconds)"
    failure = Failure(attempt=attempt, reason=Reason.STARTUP_TIMEOUT, message=message, at=builder.now)
    return Diagnosis(failure, counts=True)


def startup_message(builder: StatusBuilder, progress: Progress | None) -> str:
    """Return the message of Progressing=False, for an attempt without a known step."""
    deadline, attempt = first_step_deadline(builder), builder.attempt
    # The deadline has not passed, or a page of this attempt can be read: it simply has not finished a step.
    if deadline is None or builder.now < deadline or (progress is not None and progress.attempt == attempt):
        return f"attempt {attempt} has not finished its first step yet"
    return (
        f"attempt {attempt}: whether it makes steps is unknown, since rank 0's metrics page cannot be read; "
        "spec.health.startupTimeoutSeconds is therefore not enforced; allow the operator to reach port "
        f"{constants.METRICS_PORT} of the pods"
    )
