"""Restarts: after a failure, inside the pods where all launchers are alive and in new pods otherwise."""

from dataclasses import replace
from datetime import timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Failure, Reason
from trainyard_operator.lifecycle.actions import Plan, RestartInPlace, act_now, fail_job, record_decision
from trainyard_operator.lifecycle.backoff import backoff, note_failure
from trainyard_operator.lifecycle.diagnosis import CAUSE_WINDOW, Diagnosis, not_started
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.lifecycle.restart_policy import apply_restart_policy
from trainyard_operator.lifecycle.status_builder import EventType, StatusBuilder

MAX_IN_PLACE_BACKOFF = 30.0
"""Longest restartPolicy.backoff, in seconds, that pods wait for a restart in place; launchers exit after a longer
wait."""
MAX_REFUSING_NODES = 64
"""How many nodes that refused a pod are avoided, the latest ones; likewise of nodes with a faulty GPU."""


def handle_failure(
    builder: StatusBuilder, diagnosis: Diagnosis, workers: tuple[WorkerPod, ...], progress: Progress | None
) -> Plan:
    """Return the plan that follows a failure: wait for its cause, fail the job, or restart the group.

    Args:
        builder: the status.
        diagnosis: the failure.
        workers: the pods of the attempt.
        progress: newest progress of the attempt, if any is known.
    """
    # A failure that is probably an effect waits for a while, so that the cause is recorded instead.
    if diagnosis.secondary_since is not None:
        elapsed = builder.now - diagnosis.secondary_since
        if timedelta(0) <= elapsed < diagnosis.cause_window:
            return _wait_for_cause(builder, diagnosis, elapsed)
    previous, builder.last_failure = builder.last_failure, diagnosis.failure
    note_failure(builder, progress)
    # A GPU runs out of memory again, and no step was made in between: another attempt would fail in the same way.
    if _runs_out_of_memory_again(builder, diagnosis, previous):
        diagnosis = replace(diagnosis, unrecoverable=True)
    policy = builder.effective_job.spec.restart_policy
    decision = apply_restart_policy(diagnosis, policy, builder.restarts_counted, builder.disruptions)
    # The restart policy allows no restart.
    if decision.fail_job:
        return fail_job(builder, decision.reason, decision.message)
    # It allows one: restart inside the pods where that is possible, since nothing is scheduled or pulled again.
    device_is_suspect = _device_is_suspect(diagnosis, previous)
    in_place = not device_is_suspect and _can_restart_in_place(builder, workers)
    builder.disruptions += decision.disruption
    _avoid_refusing_nodes(builder, workers)
    if device_is_suspect and diagnosis.failure.node:
        nodes = dict.fromkeys((*builder.faulty_nodes, diagnosis.failure.node))
        builder.faulty_nodes = tuple(nodes)[-MAX_REFUSING_NODES:]
    return restart(builder, decision.reason, decision.message, counts=decision.counts, in_place=in_place)


def _wait_for_cause(builder: StatusBuilder, diagnosis: Diagnosis, elapsed: timedelta) -> Plan:
    """Return the plan that waits for the cause of a failure, which happened `elapsed` ago."""
    # Most causes are observed within seconds.
    if elapsed < CAUSE_WINDOW:
        return act_now(builder, wake_after=(CAUSE_WINDOW - elapsed).total_seconds())
    # A longer wait is reported: the group still counts as running, but makes no steps.
    seconds = diagnosis.cause_window.total_seconds()
    message = f"pod {diagnosis.failure.pod} has lost a peer; waiting for the cause, at most {seconds:.0f} s"
    builder.set_condition(C.RUNNING, True, Reason.PEER_LOST, message, event="Warning")
    return act_now(builder, wake_after=(diagnosis.cause_window - elapsed).total_seconds())


def _avoid_refusing_nodes(builder: StatusBuilder, workers: tuple[WorkerPod, ...]) -> None:
    """Add the nodes that refused a pod, or could not start its container, to those that the next attempt avoids."""
    nodes = dict.fromkeys(builder.refusing_nodes)
    nodes |= dict.fromkeys(w.node for w in workers if w.node and (w.rejected or not_started(w)))
    builder.refusing_nodes = tuple(nodes)[-MAX_REFUSING_NODES:]


def _runs_out_of_memory_again(builder: StatusBuilder, diagnosis: Diagnosis, previous: Failure | None) -> bool:
    """Return whether two attempts in a row ran out of GPU memory, and the second one made no new step."""
    found, again = diagnosis.failure, previous is not None and previous.reason == Reason.GPU_OUT_OF_MEMORY
    follows = previous is not None and previous.attempt == found.attempt - 1
    return found.reason == Reason.GPU_OUT_OF_MEMORY and again and follows and builder.restarts_without_progress > 1


def _device_is_suspect(diagnosis: Diagnosis, previous: Failure | None) -> bool:
    """Return whether the next attempt must not use the GPUs of the pod that failed.

    They are broken, or failed twice in a row: a failure that the program has caused would move with it.
    """
    fault = diagnosis.gpu_fault
    if fault is None or not fault.of_device:
        return False
    same_pod = previous is not None and previous.pod == diagnosis.failure.pod
    return fault.hardware or (same_pod and previous is not None and previous.reason == fault.reason)


def _can_restart_in_place(builder: StatusBuilder, workers: tuple[WorkerPod, ...]) -> bool:
    """Return whether all pods accept a restart, and the failed ones are still waiting after the back-off."""
    spec = builder.effective_job.spec
    all_accept = len(workers) == spec.pods and all(w.accepts_restart for w in workers)
    short_wait = backoff(builder, builder.attempt + 1) <= MAX_IN_PLACE_BACKOFF
    return spec.restarts_in_place and all_accept and any(w.awaiting_restart for w in workers) and short_wait


def restart(
    builder: StatusBuilder,
    reason: Reason,
    cause: str,
    *,
    counts: bool,
    in_place: bool = False,
    event: EventType = "Warning",
) -> Plan:
    """Return the plan that records the next attempt.

    Args:
        builder: the status.
        reason: reason of the conditions and the event.
        cause: why the group restarts, as the beginning of a sentence.
        counts: whether the restart counts against restartPolicy.maxRestarts.
        in_place: whether the attempt starts inside the current pods.
        event: type of the event.
    """
    builder.pod_attempt_override = builder.pod_attempt if in_place else None
    builder.attempt += 1
    builder.restarts += 1
    builder.restarts_counted += counts
    message = f"{cause}; restarting the group as attempt {builder.attempt}"
    if in_place:
        message += " in its pods"
    if counts:
        limit = builder.effective_job.spec.restart_policy.max_restarts
        message += f" (restart {builder.restarts_counted} of {limit})"
    builder.set_condition(C.RESTARTING, True, reason, message)
    builder.record_event(event, reason, message)
    builder.clear_condition(C.RUNNING, reason, cause)
    builder.clear_condition(C.PROGRESSING, reason, cause)
    return record_decision(builder)


def restart_in_place(builder: StatusBuilder, behind: tuple[WorkerPod, ...]) -> Plan:
    """Return the plan that starts the current attempt in the pods that are still in an earlier one."""
    # The back-off of the restart policy applies to a restart in place too.
    if wait := wait_for_backoff(builder):
        return wait
    message = f"{len(behind)} of {builder.effective_job.spec.pods} pods have not started attempt {builder.attempt} yet"
    builder.set_condition(C.RUNNING, False, Reason.RESTARTING_IN_PLACE, message)
    return act_now(builder, actions=(RestartInPlace(behind, builder.attempt),), wake_after=1)


def replace_pods(builder: StatusBuilder) -> Plan:
    """Return the plan that gives up the restart in place: the current attempt gets new pods."""
    builder.pod_attempt_override = None
    message = f"not all pods could start attempt {builder.attempt} in place; the group gets new pods"
    builder.set_condition(C.RUNNING, False, Reason.WAITING_FOR_OLD_PODS, message, event="Warning")
    return record_decision(builder)


def wait_for_backoff(builder: StatusBuilder) -> Plan | None:
    """Return the plan that waits for the end of restartPolicy.backoff; None if the current attempt may start."""
    failure = builder.last_failure
    # Only an attempt that follows directly on a failure waits; one after a resize or a resumption does not.
    if failure is None or failure.attempt != builder.attempt - 1:
        return None
    remaining = backoff(builder, builder.attempt) - (builder.now - failure.at).total_seconds()
    if remaining <= 0:
        return None
    message = "waiting before the next attempt (restartPolicy.backoff)"
    builder.set_condition(C.RUNNING, False, Reason.BACKING_OFF, message)
    return act_now(builder, wake_after=remaining)
