"""spec.schedulingTimeoutSeconds: a group that cannot be scheduled as a whole gives its nodes back for a while.

The wait before the next try is random, between 1 s and a limit that grows with every timeout in a row: two groups that
give up at the same moment must not come back at the same moment. It begins when no pod of the old attempt is left.
"""

from datetime import timedelta

from trainyard.resource.scheduling import SchedulingStatus
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard.time import format_time
from trainyard_operator.lifecycle.actions import Plan, act_now, record_decision
from trainyard_operator.lifecycle.backoff import uniform
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.lifecycle.status_builder import StatusBuilder

FIRST_WAIT = 20.0
"""Longest wait after the first timeout, in seconds; after each further one it is twice as long."""
LONGEST_WAIT = 300.0
"""Longest wait, in seconds, after any number of timeouts in a row."""
SHORTEST_WAIT = 1.0


def forget_other_attempts(before: TrainingJobStatus, after: TrainingJobStatus) -> TrainingJobStatus:
    """Return the status to write, without a wait for nodes if it begins another attempt for another reason."""
    if after.attempt == before.attempt or gave_up(before, after):
        return after
    return after.replace(scheduling=None)


def gave_up(before: TrainingJobStatus, after: TrainingJobStatus) -> bool:
    """Return whether a status begins another attempt because the one before was not scheduled in time."""
    timeouts = [status.scheduling.timeouts if status.scheduling else 0 for status in (before, after)]
    return after.attempt > before.attempt and timeouts[1] > timeouts[0]


def give_up_attempt(builder: StatusBuilder, workers: tuple[WorkerPod, ...], missing: tuple[int, ...]) -> Plan | None:
    """Return the plan that gives up an attempt whose pods were not all scheduled in time; None as long as it may wait.

    Args:
        builder: the status of an attempt that does not run yet.
        workers: the pods of the attempt.
        missing: indexes of its pods that do not exist.
    """
    spec, status = builder.effective_job.spec, builder.scheduling or SchedulingStatus()
    timeout, waiting = spec.scheduling_timeout_seconds, [w for w in workers if w.unscheduled]
    # The group may wait for ever, or all of its pods are scheduled.
    if timeout is None or not (waiting or missing):
        builder.scheduling = None
        return None
    # It holds nothing that others could need: it has no pods, or they wait in a queue, where a new try would lose the
    # place of the group.
    if not workers or any(w.gated for w in workers):
        return None
    since = status.waiting_since or builder.now
    # It has not waited long enough.
    if builder.now < since + timedelta(seconds=timeout):
        builder.scheduling = status.replace(waiting_since=since)
        return None
    builder.scheduling = SchedulingStatus(timeouts=status.timeouts + 1)
    if builder.elastic is not None:
        builder.elastic = builder.elastic.replace(unschedulable_since=None)
    builder.pod_attempt_override = None
    builder.attempt += 1
    count = len(waiting) + len(missing)
    message = (
        f"{count} of {spec.pods} pods were not scheduled within {timeout} s (spec.schedulingTimeoutSeconds); deleting "
        f"all pods of the group, and trying again as attempt {builder.attempt} after a random wait"
    )
    if blocker := next((w.blocker for w in waiting if w.blocker), None):
        message += f"; {blocker.message}"
    builder.set_condition(C.RUNNING, False, Reason.SCHEDULING_TIMEOUT, message)
    builder.record_event("Warning", Reason.SCHEDULING_TIMEOUT, message)
    return record_decision(builder)


def is_giving_up(builder: StatusBuilder) -> bool:
    """Return whether the attempt before the current one was not scheduled in time, and its pods may still exist."""
    status = builder.scheduling
    return status is not None and status.timeouts > 0 and (status.waiting_since or status.retry_time) is None


def wait_for_retry(builder: StatusBuilder) -> Plan | None:
    """Return the plan that waits before pods are created again after a timeout; None if they may be created."""
    spec, status = builder.effective_job.spec, builder.scheduling
    # No attempt was given up, the pods of this one exist already, or the user does not want a timeout any more.
    if status is None or not status.timeouts or status.waiting_since or spec.scheduling_timeout_seconds is None:
        return None
    # All pods of the old attempt are gone: the wait begins.
    if status.retry_time is None:
        builder.scheduling = status.replace(retry_time=builder.now + timedelta(seconds=_wait(builder, status.timeouts)))
        return record_decision(builder)
    seconds = (status.retry_time - builder.now).total_seconds()
    if seconds <= 0:
        return None
    message = (
        f"not all pods of attempt {builder.attempt - 1} were scheduled in time (spec.schedulingTimeoutSeconds); the "
        f"next try is at {format_time(status.retry_time)}"
    )
    builder.set_condition(C.RUNNING, False, Reason.SCHEDULING_TIMEOUT, message)
    return act_now(builder, wake_after=seconds)


def seconds_until_timeout(builder: StatusBuilder) -> float | None:
    """Return the seconds until the group gives up; None if it does not wait for nodes."""
    timeout, status = builder.effective_job.spec.scheduling_timeout_seconds, builder.scheduling
    if timeout is None or status is None or status.waiting_since is None:
        return None
    seconds = (status.waiting_since + timedelta(seconds=timeout) - builder.now).total_seconds()
    return seconds if seconds > 0 else None


def _wait(builder: StatusBuilder, timeouts: int) -> int:
    """Return the wait after a number of timeouts in a row, in whole seconds: evenly spread, by job and attempt."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(timeouts - 1, 16))
    share = uniform(f"{builder.effective_job.metadata.uid}/{builder.attempt}/scheduling")
    return round(SHORTEST_WAIT + share * (longest - SHORTEST_WAIT))
