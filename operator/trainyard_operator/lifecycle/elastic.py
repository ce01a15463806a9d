"""Elastic groups: fewer workers while there is no room for all of them, and more once there is (docs/elastic.md).

Each size is an attempt of its own, which goes on from a checkpoint. That room is back is shown by placeholders: pods
that ask for what a worker asks for and do nothing. `draft.job` is the job as its current attempt has it, and `seen.job`
as the user wants it.
"""

from datetime import datetime, timedelta

from trainyard.resolve import largest_size
from trainyard.resource.elastic import Elastic, ElasticStatus
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import CreatePlaceholders, Plan, ledger, settle
from trainyard_operator.lifecycle.observation import Observation, Worker, WorkerState
from trainyard_operator.lifecycle.restart import restart
from trainyard_operator.lifecycle.status_builder import Draft


def tell_size(draft: Draft, wanted: int) -> None:
    """Say in the status whether the current attempt has as many workers as are wanted."""
    size, known = draft.job.spec.workers.replicas, draft.status.elastic
    degraded = draft.status.condition(C.DEGRADED)
    ours = degraded is not None and degraded.reason == Reason.RESIZED
    if size < wanted:
        if ours or not draft.status.is_true(C.DEGRADED):  # what else is wrong is more urgent
            draft.set(C.DEGRADED, True, Reason.RESIZED, f"{size} of {wanted} workers")
        return
    if known is not None and known.replicas is not None:
        draft.update(elastic=known.replace(replicas=None))
    if ours:
        draft.clear(C.DEGRADED, Reason.RESIZED, f"{size} of {wanted} workers")


def rescale(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan:
    """The pods were made for another number of workers than is wanted now.

    An elastic group that runs goes on while room is sought for more workers; any other restarts at the new size.
    """
    elastic, wanted = draft.job.spec.elastic, seen.job.spec.workers.replicas
    sizes = {w.replicas for w in workers}
    if elastic and draft.status.is_true(C.RUNNING) and len(sizes) == 1:
        size = sizes.pop()
        if elastic.min_replicas <= size < wanted:
            draft.update(elastic=ElasticStatus(replicas=size))
            message = f"{wanted} workers are wanted now; going on with {size} until there is room for more"
            draft.tell("Normal", Reason.RESIZED, message)
            return ledger(draft)
    draft.update(elastic=None)
    return restart(draft, Reason.SPEC_CHANGED, f"spec.workers.replicas is {wanted} now", counts=False)


# --- shrinking ------------------------------------------------------------------------------------------------


def shrink(draft: Draft, seen: Observation, workers: tuple[Worker, ...], missing: tuple[int, ...]) -> Plan | None:
    """Of an attempt that does not run yet: a smaller one, if pods have found no room for long enough; else None."""
    elastic, known = draft.job.spec.elastic, draft.status.elastic or ElasticStatus()
    if elastic is None:
        return None
    refused = seen.trouble is not None and seen.trouble.reason is Reason.PODS_REFUSED
    short = sum(w.obstacle is not None and w.obstacle.reason is Reason.UNSCHEDULABLE for w in workers)
    short += len(missing) if refused else 0
    if not short:
        if known.unschedulable_since is not None:
            draft.update(elastic=known.replace(unschedulable_since=None))
        return None
    since = known.unschedulable_since or draft.now
    draft.update(elastic=known.replace(unschedulable_since=since))
    if draft.now < since + _period(elastic):
        return None
    spec = draft.job.spec
    # If it is the parameter server that has found none, it gets a worker's.
    size = largest_size(draft.job, spec.workers.replicas - short)
    if size is None:
        return None
    seconds = elastic.resize_after_seconds
    why = f"no room for {short} of {spec.pods} pods for {seconds} s (spec.elastic.resizeAfterSeconds)"
    return _resize(draft, seen, size, why)


def shrink_due(draft: Draft) -> float | None:
    """Seconds until pods have found no room for long enough; None if that is not to be waited for."""
    elastic, known = draft.job.spec.elastic, draft.status.elastic
    if elastic is None or known is None or known.unschedulable_since is None:
        return None
    return _left(draft, known.unschedulable_since + _period(elastic))


# --- growing --------------------------------------------------------------------------------------------------


def grow(draft: Draft, seen: Observation) -> Plan | None:
    """Of an attempt that runs with fewer workers than are wanted: a larger one, or a look for room; else None.

    Every resizeAfterSeconds counts how many placeholders run; once as many do as workers are missing, it does at once.
    """
    spec, wanted = draft.job.spec, seen.job.spec.workers.replicas
    size, elastic = spec.workers.replicas, spec.elastic
    there = [w for w in seen.workers if w.placeholder and w.attempt == draft.status.pod_attempt and not w.terminating]
    extra = [w for w in there if w.index >= wanted - size]
    if elastic is None or size >= wanted or extra:
        return settle(draft, delete=extra) if extra else None
    running = [w for w in there if w.state is WorkerState.RUNNING]
    due = _look_due(draft, elastic)
    if due is None:
        return None
    ripe = draft.now >= due
    if running and (ripe or len(running) == wanted - size):
        larger = largest_size(seen.job, size + len(running))
        if larger is not None and larger > size:
            return _resize(draft, seen, larger, f"there is room for {size + len(running)} of {wanted} workers")
    if not ripe:
        return settle(draft, wake_after=_left(draft, due))
    known = draft.status.elastic or ElasticStatus()
    draft.update(elastic=known.replace(last_probe_time=draft.now))
    wake_after = float(elastic.resize_after_seconds)
    if any(w.state is not WorkerState.PENDING for w in there):
        return settle(draft, delete=there, wake_after=wake_after)  # of no use, and others may need the room
    missing = tuple(sorted(set(range(wanted - size)) - {w.index for w in there}))
    actions = (CreatePlaceholders(draft.status.pod_attempt, missing),) if missing else ()
    return settle(draft, actions=actions, wake_after=wake_after)


def _look_due(draft: Draft, elastic: Elastic) -> datetime | None:
    """When the placeholders are looked at next."""
    running = draft.status.condition(C.RUNNING)
    if running is None or running.status != "True":
        return None
    known = draft.status.elastic
    tried = known.last_probe_time if known and known.last_probe_time else running.last_transition_time
    return max(tried, running.last_transition_time) + _period(elastic)


# --- both -----------------------------------------------------------------------------------------------------


def _resize(draft: Draft, seen: Observation, size: int, why: str) -> Plan:
    """The next attempt has another size; it costs no restart. The pods of this one save before they end."""
    wanted, before = seen.job.spec.workers.replicas, draft.job.spec.workers.replicas
    draft.update(elastic=ElasticStatus(replicas=size if size < wanted else None))
    draft.job = seen.job.with_replicas(size)
    tell_size(draft, wanted)
    why += f"; going on with {size} of {wanted} workers"
    return restart(draft, Reason.RESIZED, why, counts=False, event="Normal" if size > before else "Warning")


def _period(elastic: Elastic) -> timedelta:
    return timedelta(seconds=elastic.resize_after_seconds)


def _left(draft: Draft, moment: datetime) -> float | None:
    left = (moment - draft.now).total_seconds()
    return left if left > 0 else None
