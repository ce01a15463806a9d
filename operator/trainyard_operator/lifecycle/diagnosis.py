"""Why an attempt ended early: which worker failed first, and whose fault it was. Acting on it is the plan's."""

import json
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from trainyard.protocol import constants
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.status import Failure, Reason
from trainyard_operator.lifecycle.observation import Worker, WorkerState

_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A failure, and what it means for the budget of restarts."""

    failure: Failure
    counts: bool
    """The user's program is at fault, so the restart counts against restartPolicy.maxRestarts."""
    hopeless: bool = False
    """No restart can help: the configuration is wrong."""
    effect_since: datetime | None = None
    """Set if this may be only the effect of another failure that has not been seen yet: when it happened."""


def diagnose(workers: Iterable[Worker], attempt: int, missing: int, now: datetime) -> Diagnosis | None:
    """The first failure among the workers of one attempt, or None if nothing has gone wrong.

    Args:
        workers: the pods of the current attempt.
        attempt: its number.
        missing: how many pods that once ran are gone altogether.
        now: time of the observation, for failures that carry none.
    """
    workers = list(workers)
    failed = [w for w in workers if w.state is WorkerState.FAILED]
    taken = [w for w in workers if w.disrupted or (w.terminating and w.state is not WorkerState.SUCCEEDED)]
    if taken:  # its peers fail because it is gone, and never the other way round
        return _disruption(min(taken, key=_first), now)
    if failed:
        first = min(failed, key=_first)
        if _hangs(first):
            return _hang([w for w in failed if _hangs(w)], first, workers, now)
        return _program_failure(first, now)
    if missing:
        message = f"{missing} worker pods are gone: they were deleted, or their nodes were"
        return Diagnosis(Failure(attempt=attempt, reason=Reason.WORKER_LOST, message=message, at=now), counts=False)
    return None


def _first(worker: Worker) -> tuple[bool, float, int]:
    """Sort key: causes before effects, then by time (whole seconds only), then by index."""
    message = worker.message
    effect = message is not None and message.peer_lost
    return effect, worker.finished_at.timestamp() if worker.finished_at else float("inf"), worker.index


def _hangs(worker: Worker) -> bool:
    message = worker.message
    return message is not None and message.hang is not None


def _hang(hanging: list[Worker], first: Worker, workers: list[Worker], now: datetime) -> Diagnosis:
    """All ranks wait for one that hangs, so each pod finds that out by itself, and each blames a rank of its own."""
    blamed = min(hanging, key=lambda w: w.message.culprit_key if w.message else TerminationMessage().culprit_key)
    found = _program_failure(blamed, now)
    silent = blamed.message is not None and blamed.message.hang is not None and blamed.message.hang.no_stack_trace
    if silent or not any(w.active for w in workers):
        return found
    return replace(found, effect_since=first.finished_at)  # the pod with the cause may be about to say so


def _disruption(worker: Worker, now: datetime) -> Diagnosis:
    deleted = "the pod was deleted", "Deleted"
    message, reason = (worker.last_words, worker.reason or Reason.DISRUPTED) if worker.disrupted else deleted
    failure = Failure(
        attempt=worker.runs,
        pod=worker.name,
        node=worker.node,
        exit_code=worker.exit_code,
        reason=reason,
        message=message[:1000],
        at=now,
    )
    return Diagnosis(failure, counts=False)


def _program_failure(worker: Worker, now: datetime) -> Diagnosis:
    words = worker.message
    effect = words is not None and words.peer_lost
    hopeless = worker.exit_code == constants.EXIT_INVALID_CONFIG and words is not None
    failure = Failure(
        attempt=worker.runs,
        pod=worker.name,
        node=worker.node,
        rank=words.rank if words else None,
        exit_code=worker.exit_code,
        reason=Reason.INVALID_CONFIG if hopeless else _reason(worker),
        message=(words.message if words else _last_line(worker.last_words))[:1000],
        step=words.step if words else None,
        at=now,
    )
    return Diagnosis(failure, counts=True, hopeless=hopeless, effect_since=worker.finished_at if effect else None)


def _reason(worker: Worker) -> str:
    if worker.reason and worker.reason != "Error":  # OOMKilled, ContainerCannotRun, ...
        return worker.reason
    if worker.message and worker.message.exception:
        return worker.message.exception[:_LONGEST_REASON]
    return _signal_name((worker.exit_code or 0) - 128) or "Error"


def _signal_name(number: int) -> str | None:
    """None if there is no such signal: 255 is exit(-1), or what containerd says if it does not know the exit code."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def _last_line(text: str) -> str:
    """The last line of a log; of one in JSON its message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        said = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return lines[-1]
    message = said.get("message") if isinstance(said, dict) else None
    return message if isinstance(message, str) else lines[-1]
