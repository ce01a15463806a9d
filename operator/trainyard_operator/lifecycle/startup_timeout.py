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


def first_step_deadline(builder: StatusBuilder, progress: Progress | None) -> datetime | None:
    """Return when the running attempt must have made its first step; None if no deadline applies.

    The time in which the workers prepared data, as far as they made progress, does not count. None applies once the
    attempt has made a step, while not all workers run, to an evaluation, which makes none (launchers detect it if it
    hangs), and to a user's own program, which need not report steps.
    """
    running, job = builder.condition(ConditionType.RUNNING), builder.effective_job
    if job.spec.trainer is None or job.spec.trainer.task == "evaluate":
        return None
    if running is None or running.status != "True":
        return None
    if has_stepped(builder.progress, builder.attempt):
        return None
    seconds = startup_timeout(job.spec.health) + _preparation_seconds(builder, progress)
    return running.last_transition_time + timedelta(seconds=seconds)


def _preparation_seconds(builder: StatusBuilder, progress: Progress | None) -> float:
    """Return how long the running attempt has prepared data, up to its last progress; at most the time it has run."""
    running = builder.condition(ConditionType.RUNNING)
    if progress is None or progress.attempt != builder.attempt or running is None:
        return 0.0
    since = (builder.now - running.last_transition_time).total_seconds()
    return min(max(0.0, progress.data_preparation_seconds or 0.0), max(0.0, since))


def check_startup_timeout(builder: StatusBuilder, progress: Progress | None) -> Diagnosis | None:
    """Return a failure if the deadline of the first step has passed and a metrics page proves that none was made.

    A missing page is no proof: the operator may be unable to reach the metrics page of a healthy group. The proof is a
    page of this attempt, read after the deadline, that shows no step.
    """
    deadline, attempt = first_step_deadline(builder, progress), builder.attempt
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
    deadline, attempt = first_step_deadline(builder, progress), builder.attempt
    # The workers prepare data.
    if (
        progress is not None
        and progress.attempt == attempt
        and progress.data_prepared is not None
        and progress.data_prepared < 1
    ):
        return f"attempt {attempt} prepares its data: {progress.data_prepared:.0%}"
    # The deadline has not passed, or a page of this attempt can be read: it simply has not finished a step.
    if deadline is None or builder.now < deadline or (progress is not None and progress.attempt == attempt):
        return f"attempt {attempt} has not finished its first step yet"
    return (
        f"attempt {attempt}: whether it makes steps is unknown, since rank 0's metrics page cannot be read; "
        "spec.health.startupTimeoutSeconds is therefore not enforced; allow the operator to reach port "
        f"{constants.METRICS_PORT} of the pods"
    )
