"""What follows the failure of an attempt: another one, inside the pods where they live, in new ones otherwise."""

from datetime import timedelta

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import OrderWorkers, Plan, fail, ledger, settle
from trainyard_operator.lifecycle.diagnosis import Diagnosis
from trainyard_operator.lifecycle.observation import Worker
from trainyard_operator.lifecycle.restart_policy import backoff, judge
from trainyard_operator.lifecycle.status_builder import Draft, EventType

SETTLE = timedelta(seconds=3)
"""How long a failure that looks like the effect of another one waits for the cause to show."""
LONGEST_HOLD = 30.0
"""Seconds of restartPolicy.backoff that pods wait for another attempt: well below what their launchers bear."""


def recover(draft: Draft, found: Diagnosis, workers: tuple[Worker, ...]) -> Plan:
    """A failure: start over, inside the pods if they live, or give up."""
    if found.effect_since and timedelta(0) <= draft.now - found.effect_since < SETTLE:
        return settle(draft, wake_after=SETTLE.total_seconds())
    draft.update(last_failure=found.failure)
    verdict = judge(found, draft.job.spec.restart_policy, draft.status.restarts_counted)
    if verdict.fails:
        return fail(draft, verdict.reason, verdict.message)
    in_place = _can_stay(draft, workers, draft.status.restarts_counted + verdict.counts)
    return restart(draft, verdict.reason, verdict.message, counts=verdict.counts, in_place=in_place)


def _can_stay(draft: Draft, workers: tuple[Worker, ...], restarts: int) -> bool:
    """Whether the group can be restarted inside its pods: all live, and those that have failed will still be there."""
    spec = draft.job.spec
    whole = len(workers) == spec.pods and all(w.obeys for w in workers) and any(w.held for w in workers)
    return whole and spec.restarts_in_place and backoff(spec.restart_policy.backoff, restarts) <= LONGEST_HOLD


def restart(
    draft: Draft, reason: Reason, why: str, *, counts: bool, in_place: bool = False, event: EventType = "Warning"
) -> Plan:
    """Begin the next attempt. `counts`: it spends restartPolicy.maxRestarts. `in_place`: in the pods that there are."""
    status = draft.status
    draft.update(
        attempt=status.attempt + 1,
        pod_attempt_override=status.pod_attempt if in_place else None,
        restarts=status.restarts + 1,
        restarts_counted=status.restarts_counted + counts,
    )
    message = f"{why}; restarting the group as attempt {status.attempt + 1}"
    if in_place:
        message += " in its pods"
    if counts:
        message += f" (restart {status.restarts_counted + 1} of {draft.job.spec.restart_policy.max_restarts})"
    draft.set(C.RESTARTING, True, reason, message)
    draft.tell(event, reason, message)
    draft.clear(C.RUNNING, reason, why)
    draft.clear(C.PROGRESSING, reason, why)
    return ledger(draft)


def order(draft: Draft, behind: tuple[Worker, ...]) -> Plan:
    """Start the current attempt in the pods that are not in it yet."""
    if pause := back_off(draft):
        return pause
    message = f"{len(behind)} of {draft.job.spec.pods} pods have not begun attempt {draft.status.attempt} yet"
    draft.set(C.RUNNING, False, Reason.RESTARTING_IN_PLACE, message)
    return settle(draft, actions=(OrderWorkers(behind, draft.status.attempt),), wake_after=1)


def renew(draft: Draft) -> Plan:
    """Not all pods of the group can be restarted inside: it gets new ones, for the same attempt."""
    draft.update(pod_attempt_override=None)
    message = f"not all pods could begin attempt {draft.status.attempt}; the group gets new ones"
    draft.set(C.RUNNING, False, Reason.WAITING_FOR_OLD_PODS, message, event="Warning")
    return ledger(draft)


def back_off(draft: Draft) -> Plan | None:
    """Wait, if the current attempt may not start yet. That follows from what the status has recorded."""
    status, failure = draft.status, draft.status.last_failure
    if failure is None or failure.attempt != status.attempt - 1:
        return None
    wait = backoff(draft.job.spec.restart_policy.backoff, status.restarts_counted)
    left = wait - (draft.now - failure.at).total_seconds()
    if left <= 0:
        return None
    draft.set(C.RUNNING, False, Reason.BACKING_OFF, "waiting before the next attempt (restartPolicy.backoff)")
    return settle(draft, wake_after=left)
