"""Successes of workers, remembered in the status: a pod that has succeeded may be removed while others still run.

The status holds them as a Job holds its completed indexes, for example ``0,2-5``. A finalizer on each pod would also
remember a success that the operator never saw, but it would keep pods from being deleted while the operator is away.
"""

from collections.abc import Iterable

from trainyard.resource.status import ConditionType
from trainyard_operator.lifecycle.degradation import report_degradation
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.lifecycle.status_builder import StatusBuilder

_MAX_PART = len("99999-99999")
"""Longest part of a text of indexes, in characters."""


def remember_successes(builder: StatusBuilder, workers: Iterable[WorkerPod]) -> set[int]:
    """Add the pods that have succeeded to the status. Return the indexes of all that ever did in this attempt.

    The final progress of rank 0 is recorded with its success, since its pod may be gone when the job ends.
    """
    remembered = parse_indexes(builder.succeeded_indexes)
    # While an attempt is being started in pods of an earlier one, a pod may still end with the earlier one.
    joined = builder.pod_attempt_override is None or builder.is_true(ConditionType.RUNNING)
    for worker in workers:
        if worker.state is not WorkerState.SUCCEEDED or worker.index in remembered:
            continue
        if not (joined or worker.running_attempt == builder.attempt):
            continue
        remembered.add(worker.index)
        if worker.index == 0:
            _record_final_progress(builder, worker)
    builder.succeeded_indexes = format_indexes(remembered)
    return remembered


def _record_final_progress(builder: StatusBuilder, worker: WorkerPod) -> None:
    """Record the progress that the built-in trainer leaves at its end; of other programs the last known one remains."""
    message = worker.trainer_message
    if message is None or message.progress is None:
        return
    finished_at = worker.finished_at or builder.now
    final = message.progress.replace(attempt=builder.attempt, updated_at=finished_at, eta_seconds=0.0)
    report_degradation(builder, final)
    builder.progress = final


def parse_indexes(text: str) -> set[int]:
    """Return the indexes in a text like ``0,2-5``; a part that is malformed is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if len(part) <= _MAX_PART and first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return found


def format_indexes(indexes: Iterable[int]) -> str:
    """Return indexes as a text like ``0,2-5``, in ascending order."""
    parts: list[str] = []
    run: list[int] = []
    for index in [*sorted(set(indexes)), -1]:
        if run and index != run[-1] + 1:
            parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        run.append(index)
    return ",".join(parts)
