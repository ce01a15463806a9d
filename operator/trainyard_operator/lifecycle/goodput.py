"""What the wall time of a job goes into, accounted for whenever its status is written.

The time between two writes counts as what the earlier one says that the job was doing: all that is remembered is in
the status, so a new operator goes on where the old one has stopped. Seconds are whole ones, as all times of a status
are; the parts are therefore exactly the wall time up to the last write.
"""

from datetime import datetime

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Activity, ConditionType, Goodput, TrainingJobStatus
from trainyard_operator.lifecycle.startup_timeout import has_stepped


def account(job: TrainingJob, after: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """The status to be written, with the time since the last write accounted for.

    Passing time alone is no reason to write: a status that says nothing new stays as it is.
    """
    before = job.status
    if after == before or before.finished or after.start_time is None:
        return after
    known = before.goodput or Goodput(activity=Activity.STARTUP, accounted_at=after.start_time)
    booked = _book(known, before, after, max(now.replace(microsecond=0), known.accounted_at))
    step = after.progress.step if after.progress else 0
    booked = booked.replace(highest_step=max(step, known.highest_step))
    return after.replace(goodput=booked.replace(activity=_activity(job, after, booked)))


def _book(known: Goodput, before: TrainingJobStatus, after: TrainingJobStatus, now: datetime) -> Goodput:
    """Add the time since the last write to its part."""
    seconds = round((now - known.accounted_at).total_seconds())
    match known.activity:
        case Activity.SUSPENDED:
            parts = {"suspended_seconds": known.suspended_seconds + seconds}
        case Activity.RECOVERY:
            parts = {"recovery_seconds": known.recovery_seconds + seconds}
        case Activity.PRODUCTIVE:
            # A wait is known once it is over, and part of it was booked as productive before: the rest is made up
            # for from what follows, since no part may shrink.
            debt = known.pending_checkpoint_seconds + _stall(before, after)
            waited = min(seconds, int(debt))
            parts = {
                "checkpoint_seconds": known.checkpoint_seconds + waited,
                "productive_seconds": known.productive_seconds + seconds - waited,
            }
            known = known.replace(pending_checkpoint_seconds=round(debt - waited, 3))
        case _:
            parts = {"startup_seconds": known.startup_seconds + seconds}
    booked = known.replace(**parts, accounted_at=now)
    wall = sum(booked.parts().values())
    return booked.replace(ratio=round(booked.productive_seconds / wall, 4) if wall else None)


def _stall(before: TrainingJobStatus, after: TrainingJobStatus) -> float:
    """Seconds that training has newly been seen to wait for checkpoints; the worker counts anew in each attempt."""
    if after.progress is None:
        return 0.0
    counted = after.progress.checkpoint_stall_seconds or 0.0
    if before.progress is not None and before.progress.attempt == after.progress.attempt:
        counted -= before.progress.checkpoint_stall_seconds or 0.0
    return max(0.0, counted)


def _activity(job: TrainingJob, after: TrainingJobStatus, booked: Goodput) -> Activity | None:
    """What the job does from this write on."""
    before = job.status
    if after.finished:
        return None
    if after.is_true(ConditionType.SUSPENDED):
        return Activity.SUSPENDED
    if _gets_on(job, after, booked.highest_step):
        return Activity.PRODUCTIVE
    if after.restarts > before.restarts:
        return Activity.RECOVERY
    if after.attempt > before.attempt:  # accepted, or resumed: nothing had failed
        return Activity.STARTUP
    # Back from productive in one and the same attempt: steps are being done again.
    return Activity.RECOVERY if booked.activity is Activity.PRODUCTIVE else booked.activity


def _gets_on(job: TrainingJob, status: TrainingJobStatus, reached: int) -> bool:
    """Whether steps are being made that were never made before.

    Of a program of one's own all that is known is whether it runs.
    """
    if job.spec.trainer is None:
        return status.is_true(ConditionType.RUNNING)
    return has_stepped(status) and status.progress is not None and status.progress.step >= reached
