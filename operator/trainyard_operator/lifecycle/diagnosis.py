"""Diagnosis of a failed attempt: which worker failed first, and what caused it. The plan decides what follows."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from trainyard.protocol import constants
from trainyard.protocol.gpu_faults import GpuFault, find_gpu_fault
from trainyard.protocol.log_tail import LogFailure
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.status import Failure, Reason
from trainyard_operator.lifecycle.containers import names_no_program
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.pod_input.log_tail import read_log_tail

CAUSE_WINDOW = timedelta(seconds=3)
"""How long a failure that is probably the effect of another one waits for its cause to be observed."""
LOST_NODE_WINDOW = timedelta(seconds=90)
"""How long it waits while a peer is still shown as running: the peer may be on a lost node, whose pods the cluster
deletes after 80 s (docs/failures.md)."""
_MAX_REASON = 200
_MAX_MESSAGE = 1000
NO_EXPLANATION = "the program failed after it had reported its final figures; see the log of the pod"
"""Message for a termination message that holds figures (`trainyard.reporter`), which replaces the end of the log."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A failure, and what it means for the restart policy."""

    failure: Failure
    counts: bool
    """The user's program failed, so a restart counts against restartPolicy.maxRestarts."""
    unrecoverable: bool = False
    """Every restart would fail in the same way: the configuration is invalid, or there is no such program."""
    secondary_since: datetime | None = None
    """When it happened, if it may be the effect of another failure that is not observed yet; else None."""
    cause_window: timedelta = CAUSE_WINDOW
    """How long after `secondary_since` the cause may still be observed."""
    gpu_fault: GpuFault | None = None
    """Class of a failure that involves a GPU; None for any other."""


def diagnose(
    workers: Iterable[WorkerPod], attempt: int, missing: int, now: datetime, unstarted: int = 0
) -> Diagnosis | None:
    """Return the first failure among the pods of an attempt; None if nothing has failed.

    Args:
        workers: the pods of the current attempt.
        attempt: its number.
        missing: how many pods that were running do not exist any more.
        now: time of the observation, for failures without a time of their own.
        unstarted: how many pods of a group that was never complete have not started yet.
    """
    workers = list(workers)
    failed = [w for w in workers if w.state is WorkerState.FAILED]
    removed = [w for w in workers if w.disrupted or (w.terminating and w.state is not WorkerState.SUCCEEDED)]
    # The cluster removed a pod: its peers fail because it is gone, never the other way round.
    if removed:
        return _disruption(min(removed, key=_cause_first), now)
    if failed:
        first = min(failed, key=_cause_first)
        # Ranks hang: every pod notices it, so the culprit is searched in all of them.
        if _hangs(first):
            return _hang([w for w in failed if _hangs(w)], first, workers, now)
        # A program failed.
        if not _is_secondary(first):
            return _program_failure(first, now)
        # A worker lost a peer, or never found it. Peers that have disappeared are the cause, see below.
        if not missing:
            return _secondary_failure(first, workers, unstarted, now)
    # A container can never start, whatever the kubelet retries.
    if blocked := [w for w in workers if w.state is WorkerState.PENDING and w.blocker and w.blocker.permanent]:
        return _never_starts(min(blocked, key=lambda w: w.index), now)
    # Pods disappeared without a trace: deleted by force, or with their node.
    if missing:
        message = f"{missing} worker pods are gone: they or their nodes were deleted"
        return Diagnosis(Failure(attempt=attempt, reason=Reason.WORKER_LOST, message=message, at=now), counts=False)
    return None


def unsaved_state(workers: Iterable[WorkerPod], now: datetime) -> Failure | None:
    """Return the failure of a pod that could not save its state before it ended; None if there is none."""
    failures = (_program_failure(w, now).failure for w in workers if w.state is WorkerState.FAILED)
    return next((f for f in failures if f.reason == Reason.FINAL_CHECKPOINT_FAILED), None)


def _cause_first(worker: WorkerPod) -> tuple[bool, float, int]:
    """Return a sort key: causes before effects, then by time (whole seconds only), then by index."""
    return _is_secondary(worker), worker.finished_at.timestamp() if worker.finished_at else float("inf"), worker.index


def _hangs(worker: WorkerPod) -> bool:
    message = worker.trainer_message
    return message is not None and message.hang is not None


def _hang(hanging: list[WorkerPod], first: WorkerPod, workers: list[WorkerPod], now: datetime) -> Diagnosis:
    """Return the failure of ranks that all wait for one that hangs.

    Each pod notices the hang by itself and names a rank of its own; the one that is furthest behind is the culprit.
    """
    culprit = min(hanging, key=lambda w: (w.trainer_message or TerminationMessage()).culprit_key)
    diagnosis = _program_failure(culprit, now)
    message = culprit.trainer_message
    no_answer = message is not None and message.hang is not None and message.hang.no_stack_trace
    # A rank that does not answer is the cause, and without other pods nothing more can be learned.
    others = any(w.awaiting_restart or w.state in (WorkerState.PENDING, WorkerState.RUNNING) for w in workers)
    if no_answer or not others:
        return diagnosis
    # The pod with the real culprit may report it in a moment.
    return replace(diagnosis, secondary_since=first.finished_at)


def _disruption(worker: WorkerPod, now: datetime) -> Diagnosis:
    """Return the failure of a pod that the cluster, or a user, removed."""
    reason, message = "Deleted", "the pod was deleted"
    if worker.disrupted:
        reason, message = worker.reason or Reason.DISRUPTED, worker.termination_message
    failure = Failure(
        attempt=worker.running_attempt,
        pod=worker.name,
        node=worker.node,
        exit_code=worker.exit_code,
        reason=reason,
        message=message[:_MAX_MESSAGE],
        at=now,
    )
    return Diagnosis(failure, counts=False)


def _program_failure(worker: WorkerPod, now: datetime) -> Diagnosis:
    """Return the failure of the program in a pod."""
    message = worker.trainer_message
    reason = _reason(worker)
    # The trainer reports these failures by exit codes; another program may use the codes as it likes.
    own = message is not None and bool(message.exception)
    if own and worker.exit_code == constants.EXIT_INVALID_CONFIG:
        reason = Reason.INVALID_CONFIG
    elif own and worker.exit_code == constants.EXIT_FINAL_CHECKPOINT_FAILED:
        reason = Reason.FINAL_CHECKPOINT_FAILED
    unrecoverable = reason in (Reason.INVALID_CONFIG, Reason.FINAL_CHECKPOINT_FAILED) or _has_no_program(worker)
    text = _message(worker)
    # A GPU is involved: its class says more than the exception, and the advice belongs to the message.
    fault = None if unrecoverable or worker.container else _gpu_fault(worker, reason, text)
    if fault is not None:
        reason, text = fault.reason, f"{text[: _MAX_MESSAGE - len(fault.advice) - 2]}; {fault.advice}"
    failure = Failure(
        attempt=worker.running_attempt,
        pod=worker.name,
        node=worker.node,
        container=worker.container or None,
        rank=_rank(worker),
        exit_code=worker.exit_code,
        reason=reason,
        message=text[:_MAX_MESSAGE],
        step=message.step if message else None,
        at=now,
    )
    # Broken hardware is not the program's failure.
    counts = fault is None or not fault.hardware
    return Diagnosis(failure, counts=counts, unrecoverable=unrecoverable, gpu_fault=fault)


def _gpu_fault(worker: WorkerPod, reason: str, text: str) -> GpuFault | None:
    """Return the class of a failure that involves a GPU; None for one with another cause."""
    # The kubelet, the launcher or a lost peer is the reason, whatever the message quotes.
    if _hangs(worker) or _is_secondary(worker) or reason == "OOMKilled":
        return None
    return find_gpu_fault(f"{reason}: {text}")


def _secondary_failure(worker: WorkerPod, workers: list[WorkerPod], unstarted: int, now: datetime) -> Diagnosis:
    """Return the failure of a worker that has lost a peer: it waits for the cause."""
    diagnosis = replace(_program_failure(worker, now), secondary_since=worker.finished_at)
    # Part of the group never ran, so its workers waited in vain, which is not the program's failure.
    if unstarted:
        message = f"{unstarted} pods of the group have not started; {diagnosis.failure.message}"
        failure = diagnosis.failure.replace(message=message[:_MAX_MESSAGE])
        return replace(diagnosis, failure=failure, counts=False)
    # A peer is still shown as running: it has no failure of its own yet, or its node is lost.
    if any(w.state is WorkerState.RUNNING for w in workers):
        return replace(diagnosis, cause_window=LOST_NODE_WINDOW)
    return diagnosis


def _is_secondary(worker: WorkerPod) -> bool:
    """Return whether the failure of a worker only shows that it lost a peer."""
    message = worker.trainer_message
    if message is not None:
        return message.peer_lost
    return worker.state is WorkerState.FAILED and _log_failure(worker).peer_lost


def _never_starts(worker: WorkerPod, now: datetime) -> Diagnosis:
    """Return the failure of a pod with a container that can never start."""
    assert worker.blocker is not None
    failure = Failure(
        attempt=worker.running_attempt,
        pod=worker.name,
        node=worker.node,
        reason=worker.blocker.permanent,
        message=worker.blocker.message[:_MAX_MESSAGE],
        at=now,
    )
    return Diagnosis(failure, counts=True, unrecoverable=True)


def not_started(worker: WorkerPod) -> bool:
    """Return whether the container runtime could not start a container, so that the program never ran."""
    return worker.state is WorkerState.FAILED and worker.reason in ("StartError", "ContainerCannotRun")


def _has_no_program(worker: WorkerPod) -> bool:
    """Return whether the command does not exist in the image, or cannot be executed."""
    return not_started(worker) and names_no_program(worker.termination_message)


def _log_failure(worker: WorkerPod) -> LogFailure:
    """Return what the end of the log of a program says, which leaves no message like the built-in trainer's."""
    # The trainer has said it itself, and the message of an init container stays as it is.
    if worker.trainer_message is not None:
        return LogFailure()
    if worker.container:
        return LogFailure(worker.termination_message)
    return read_log_tail(worker.termination_message)


def _rank(worker: WorkerPod) -> int | None:
    """Return the rank that failed, as the trainer or the end of the log names it; None if neither does."""
    message = worker.trainer_message
    if message is None:
        return _log_failure(worker).rank
    return message.rank if message.message or message.exception else None


def _message(worker: WorkerPod) -> str:
    """Return the trainer's own message, or what the end of the log says about the failure."""
    message = worker.trainer_message
    if message is None:
        return _log_failure(worker).message
    # Final figures only: the failure came after them.
    return message.message if message.message or message.exception else NO_EXPLANATION


def _reason(worker: WorkerPod) -> str:
    """Return the kubelet's reason if it is specific, else the exception, else the signal, else Error."""
    if worker.reason and worker.reason != "Error":  # OOMKilled, ContainerCannotRun, ...
        return worker.reason
    if worker.trainer_message and worker.trainer_message.exception:
        return worker.trainer_message.exception[:_MAX_REASON]
    # A process that a signal has ended raised no exception: one in its log was caught before.
    return _signal_name((worker.exit_code or 0) - 128) or _log_failure(worker).exception or "Error"


def _signal_name(number: int) -> str | None:
    """Return the name of a signal; None if there is no such signal.

    Exit code 255 is exit(-1), or containerd's value for an unknown exit code, and not signal 127.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
