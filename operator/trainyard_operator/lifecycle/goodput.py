"""Goodput: what the wall time of a job was spent on, accounted for whenever its status is written.

The time between two writes is attributed to the activity that the earlier status names. All that must be remembered is
in the status, so a new operator continues where the previous one stopped. Times are whole seconds, as in every status;
the parts therefore add up exactly to the wall time until the last write.
"""

from datetime import datetime

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Activity, ConditionType, Goodput, TrainingJobStatus
from trainyard_operator.lifecycle.scheduling_timeout import gave_up
from trainyard_operator.lifecycle.startup_timeout import has_stepped


def account_time(job: TrainingJob, after: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Return the status to write, with the time since the last write attributed to an activity.

    Args:
        job: the job with its stored status.
        after: the status to write.
        now: the current time.
    """
    before = job.status
    # A status that changes nothing is not written just because time has passed, and a finished job does not change.
    if after == before or before.finished or after.start_time is None:
        return after
    stored = before.goodput or Goodput(activity=Activity.STARTUP, accounted_at=after.start_time)
    updated = _attribute(stored, before, after, max(now.replace(microsecond=0), stored.accounted_at))
    step = after.progress.step if after.progress else 0
    updated = updated.replace(highest_step=max(step, stored.highest_step))
    return after.replace(goodput=updated.replace(activity=_activity(job, after, updated)))


def _attribute(stored: Goodput, before: TrainingJobStatus, after: TrainingJobStatus, now: datetime) -> Goodput:
    """Return the goodput with the time since the last write added to the part of its activity."""
    seconds = round((now - stored.accounted_at).total_seconds())
    parts = stored.parts()
    pending = stored.pending_checkpoint_seconds
    match stored.activity:
        case Activity.SUSPENDED:
            parts["suspended"] += seconds
        case Activity.RECOVERY:
            parts["recovery"] += seconds
        case Activity.PRODUCTIVE:
            # A checkpoint wait is known only when it has ended, after part of it was counted as productive. No part
            # may shrink, so the difference is taken from the productive time that follows.
            pending += _checkpoint_stall(before, after)
            stalled = min(seconds, int(pending))
            parts["checkpoint"] += stalled
            parts["productive"] += seconds - stalled
            pending = round(pending - stalled, 3)
        case Activity.STARTUP | None:
            parts["startup"] += seconds
    wall_time = sum(parts.values())
    return Goodput(
        productive_seconds=parts["productive"],
        startup_seconds=parts["startup"],
        checkpoint_seconds=parts["checkpoint"],
        recovery_seconds=parts["recovery"],
        suspended_seconds=parts["suspended"],
        ratio=round(parts["productive"] / wall_time, 4) if wall_time else None,
        activity=stored.activity,
        accounted_at=now,
        highest_step=stored.highest_step,
        pending_checkpoint_seconds=pending,
    )


def _checkpoint_stall(before: TrainingJobStatus, after: TrainingJobStatus) -> float:
    """Return the seconds of waiting for checkpoints that `after` shows and `before` does not."""
    if after.progress is None:
        return 0.0
    stall = after.progress.checkpoint_stall_seconds or 0.0
    # The trainer counts from 0 in each attempt, so only a value of the same attempt is subtracted.
    if before.progress is not None and before.progress.attempt == after.progress.attempt:
        stall -= before.progress.checkpoint_stall_seconds or 0.0
    return max(0.0, stall)


def _activity(job: TrainingJob, after: TrainingJobStatus, goodput: Goodput) -> Activity | None:
    """Return what the job spends its time on from this write on; None once it has finished."""
    before = job.status
    if after.finished:
        return None
    if after.is_true(ConditionType.SUSPENDED) or after.suspending:
        return Activity.SUSPENDED
    # Steps are made that no attempt has made before.
    if _makes_new_steps(job, after, goodput.highest_step):
        return Activity.PRODUCTIVE
    # The group restarts: until it reaches the same step again, it recovers.
    if after.restarts > before.restarts:
        return Activity.RECOVERY
    # A new attempt without a restart: the job was accepted or resumed.
    if after.attempt > before.attempt and not gave_up(before, after):
        return Activity.STARTUP
    # The same attempt makes steps again that were made before: it was rolled back.
    return Activity.RECOVERY if goodput.activity is Activity.PRODUCTIVE else goodput.activity


def _makes_new_steps(job: TrainingJob, status: TrainingJobStatus, highest_step: int) -> bool:
    """Return whether the job makes steps that no attempt has made before.

    Of a user's own program without a metrics page it is only known whether it runs.
    """
    if job.spec.metrics_endpoint is None:
        return status.is_true(ConditionType.RUNNING)
    progress = status.progress
    return has_stepped(progress, status.attempt) and progress is not None and progress.step >= highest_step
