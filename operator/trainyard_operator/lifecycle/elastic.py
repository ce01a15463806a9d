"""Elastic groups: fewer workers while there is no capacity for all, and more once there is (docs/elastic.md).

Each size is an attempt of its own, which resumes from a checkpoint. Placeholder pods detect free capacity: they request
the resources of a worker and do nothing. `builder.effective_job` is the job at the size of its current attempt,
`observation.desired_job` the job as the user wants it.
"""

from datetime import datetime, timedelta

from trainyard.resolve import largest_size
from trainyard.resource.elastic import Elastic, ElasticStatus
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import CreatePlaceholders, Plan, act_now, record_decision
from trainyard_operator.lifecycle.observation import Observation, WorkerPod, WorkerState
from trainyard_operator.lifecycle.restart import restart
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def report_size(builder: StatusBuilder, desired: int) -> None:
    """Set Degraded while the current attempt has fewer workers than desired, and clear it afterwards."""
    size, elastic = builder.effective_job.spec.workers.replicas, builder.elastic
    degraded = builder.condition(C.DEGRADED)
    set_by_size = degraded is not None and degraded.reason == Reason.RESIZED
    if size < desired:
        # Any other reason of Degraded is more urgent, and stays.
        if set_by_size or not builder.is_true(C.DEGRADED):
            builder.set_condition(C.DEGRADED, True, Reason.RESIZED, f"{size} of {desired} workers")
        return
    # The group is complete: forget the reduced size.
    if elastic is not None and elastic.replicas is not None:
        builder.elastic = ElasticStatus(
            unschedulable_since=elastic.unschedulable_since, last_probe_time=elastic.last_probe_time
        )
    if set_by_size:
        builder.clear_condition(C.DEGRADED, Reason.RESIZED, f"{size} of {desired} workers")


def handle_size_change(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> Plan:
    """Return the plan for pods that were created for another number of workers than is desired now."""
    elastic, desired = builder.effective_job.spec.elastic, observation.desired_job.spec.workers.replicas
    sizes = {w.replicas for w in workers}
    # An elastic group that runs, and is asked for more workers, continues until there is capacity for them.
    if elastic and builder.is_true(C.RUNNING) and len(sizes) == 1:
        size = sizes.pop()
        if elastic.min_replicas <= size < desired:
            builder.elastic = ElasticStatus(replicas=size)
            message = f"{desired} workers are desired now; continuing with {size} until there is capacity for more"
            builder.record_event("Normal", Reason.RESIZED, message)
            return record_decision(builder)
    # Every other group restarts at the new size at once.
    builder.elastic = None
    return restart(builder, Reason.SPEC_CHANGED, f"spec.workers.replicas is {desired} now", counts=False)


# --- shrinking ------------------------------------------------------------------------------------------------


def shrink(
    builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...], missing: tuple[int, ...]
) -> Plan | None:
    """Return a restart with fewer workers, if pods have been unschedulable for resizeAfterSeconds; else None.

    Args:
        builder: the status of an attempt that does not run yet.
        observation: the observation.
        workers: the pods of the attempt.
        missing: indexes of its pods that do not exist.
    """
    elastic, status, spec = builder.effective_job.spec.elastic, builder.elastic, builder.effective_job.spec
    if elastic is None:
        return None
    # Pods count as unschedulable if the scheduler says so, or if the API server refuses them (a quota).
    error = observation.creation_error
    unschedulable = sum(w.blocker is not None and w.blocker.reason is Reason.UNSCHEDULABLE for w in workers)
    unschedulable += len(missing) if error is not None and error.reason is Reason.PODS_REFUSED else 0
    since = status.unschedulable_since if status else None
    # All pods could be scheduled: the next wait starts from the beginning.
    if not unschedulable:
        if since is not None:
            _set_unschedulable_since(builder, None)
        return None
    since = since or builder.now
    _set_unschedulable_since(builder, since)
    # The pods get resizeAfterSeconds to be scheduled.
    if builder.now < since + _resize_period(elastic):
        return None
    # The largest possible group is taken. An unschedulable parameter server takes the place of a worker.
    size = largest_size(builder.effective_job, spec.workers.replicas - unschedulable)
    if size is None:
        return None
    seconds = elastic.resize_after_seconds
    cause = f"{unschedulable} of {spec.pods} pods were unschedulable for {seconds} s (spec.elastic.resizeAfterSeconds)"
    return _resize(builder, observation, size, cause)


def seconds_until_shrink(builder: StatusBuilder) -> float | None:
    """Return the seconds until `shrink` applies; None if no pod of an elastic group is unschedulable."""
    elastic, status = builder.effective_job.spec.elastic, builder.elastic
    if elastic is None or status is None or status.unschedulable_since is None:
        return None
    return _seconds_until(builder, status.unschedulable_since + _resize_period(elastic))


def _set_unschedulable_since(builder: StatusBuilder, since: datetime | None) -> None:
    status = builder.elastic or ElasticStatus()
    builder.elastic = ElasticStatus(
        replicas=status.replicas, unschedulable_since=since, last_probe_time=status.last_probe_time
    )


# --- growing --------------------------------------------------------------------------------------------------


def grow(builder: StatusBuilder, observation: Observation) -> Plan | None:
    """Return a restart with more workers, or a probe for capacity; None if the running group has its desired size.

    A probe creates one placeholder per missing worker. Every resizeAfterSeconds the running placeholders are counted;
    once all of them run the group grows at once.
    """
    spec, desired = builder.effective_job.spec, observation.desired_job.spec.workers.replicas
    size, elastic = spec.workers.replicas, spec.elastic
    # A terminating placeholder frees its capacity, for other pods too, so it proves nothing.
    placeholders = [
        w for w in observation.workers if w.is_placeholder and w.attempt == builder.pod_attempt and not w.terminating
    ]
    superfluous = [w for w in placeholders if w.index >= desired - size]
    # Fewer workers are missing than there are placeholders: delete the superfluous ones.
    if superfluous:
        return act_now(builder, delete=superfluous)
    # The group has its desired size.
    if elastic is None or size >= desired:
        return None
    next_probe = _next_probe_time(builder, elastic)
    # The group does not run.
    if next_probe is None:
        return None
    running = [w for w in placeholders if w.state is WorkerState.RUNNING]
    probe_due = builder.now >= next_probe
    # There is capacity for all missing workers, or at the end of a period for some: grow to the largest possible size.
    if running and (probe_due or len(running) == desired - size):
        larger = largest_size(observation.desired_job, size + len(running))
        if larger is not None and larger > size:
            cause = f"there is capacity for {size + len(running)} of {desired} workers"
            return _resize(builder, observation, larger, cause)
    # The current period has not ended.
    if not probe_due:
        return act_now(builder, wake_after=_seconds_until(builder, next_probe))
    # A new period begins.
    status = builder.elastic or ElasticStatus()
    builder.elastic = ElasticStatus(
        replicas=status.replicas, unschedulable_since=status.unschedulable_since, last_probe_time=builder.now
    )
    wake_after = float(elastic.resize_after_seconds)
    # Placeholders run that allow no larger group: delete them, since others may need the capacity.
    if any(w.state is not WorkerState.PENDING for w in placeholders):
        return act_now(builder, delete=placeholders, wake_after=wake_after)
    # Create the placeholders that do not exist; those that are still pending stay.
    missing = tuple(sorted(set(range(desired - size)) - {w.index for w in placeholders}))
    actions = (CreatePlaceholders(builder.pod_attempt, missing),) if missing else ()
    return act_now(builder, actions=actions, wake_after=wake_after)


def _next_probe_time(builder: StatusBuilder, elastic: Elastic) -> datetime | None:
    """Return when the placeholders are counted next; None while the group does not run.

    The period starts with the last probe, or when the group started to run if that was later: a probe costs nothing
    to the group only once all its workers run.
    """
    running = builder.condition(C.RUNNING)
    if running is None or running.status != "True":
        return None
    started, status = running.last_transition_time, builder.elastic
    last_probe = status.last_probe_time if status and status.last_probe_time else started
    return max(last_probe, started) + _resize_period(elastic)


# --- both -----------------------------------------------------------------------------------------------------


def _resize(builder: StatusBuilder, observation: Observation, size: int, cause: str) -> Plan:
    """Return the restart at another size. It does not count, and the pods save a checkpoint before they end."""
    desired, before = observation.desired_job.spec.workers.replicas, builder.effective_job.spec.workers.replicas
    builder.elastic = ElasticStatus(replicas=size if size < desired else None)
    builder.effective_job = observation.desired_job.with_replicas(size)
    report_size(builder, desired)
    cause += f"; continuing with {size} of {desired} workers"
    return restart(builder, Reason.RESIZED, cause, counts=False, event="Normal" if size > before else "Warning")


def _resize_period(elastic: Elastic) -> timedelta:
    return timedelta(seconds=elastic.resize_after_seconds)


def _seconds_until(builder: StatusBuilder, moment: datetime) -> float | None:
    seconds = (moment - builder.now).total_seconds()
    return seconds if seconds > 0 else None
