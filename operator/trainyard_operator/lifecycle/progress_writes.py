"""When progress is written to the status: a write costs the API server and all that watch the job.

A reading arrives every few seconds. It is written at once if it says something new, and otherwise with the next change
of the status, at the latest after an interval. With 30 s, 1,000 jobs that train for an hour or more cause about 33
writes per second; a job adds at most 100 writes for its hundred percents, whatever its length.
"""

from datetime import timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.status import TrainingJobStatus
from trainyard_operator.lifecycle.successes import parse_indexes

PROGRESS_INTERVAL = timedelta(seconds=30)
"""Longest time between two writes of progress that changes, on a cluster."""

_QUIET_FIELDS = (
    "step",
    "loss",
    "eval_loss",
    "metrics",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "samples_per_second",
    "mfu",
    "eta_seconds",
    "straggler_ratio",
    "checkpoint_stall_seconds",
    "data_prepared",
    "data_preparation_seconds",
    "updated_at",
)
"""Fields that change with every reading; a change of any other field, as of the newest checkpoint, is news."""


def with_newest_progress(
    before: TrainingJobStatus, after: TrainingJobStatus, reading: Progress | None
) -> TrainingJobStatus:
    """Return a status that is written for another reason, with the newest progress of the attempt that was current.

    Args:
        before: the stored status.
        after: the status to write.
        reading: progress from rank 0's page when it was last read.
    """
    # Nothing is written, the progress is set already, or the job had finished.
    if after == before or after.progress != before.progress or before.finished:
        return after
    # The page belongs to another attempt, shows no step, or was replaced by the final progress.
    if reading is None or reading.attempt != before.attempt or reading.step == 0:
        return after
    if 0 in parse_indexes(before.succeeded_indexes) or not _is_newer(reading, before.progress):
        return after
    return after.replace(progress=reading)


def hold_back_progress(before: TrainingJobStatus, after: TrainingJobStatus, interval: timedelta) -> TrainingJobStatus:
    """Return the stored status instead of one that differs by progress only, and by nothing worth a write.

    Args:
        before: the stored status.
        after: the status to write, with its goodput.
        interval: longest time between two writes of progress that changes; 0: every reading is written.
    """
    activity = (status.goodput and status.goodput.activity for status in (before, after))
    if after.replace(progress=before.progress, goodput=before.goodput) != before or len(set(activity)) > 1:
        return after
    if before.progress is None or after.progress is None or _is_news(before.progress, after.progress, interval):
        return after
    return before


def _is_news(before: Progress, after: Progress, interval: timedelta) -> bool:
    """Return whether a reading is worth a write of its own."""
    quiet = {name: getattr(before, name) for name in _QUIET_FIELDS}
    # Another attempt, another checkpoint, another problem.
    if after.replace(**quiet) != before:
        return True
    # Steps were repeated after a rollback, or a hundredth of all steps was made.
    steps = after.step - before.step
    if steps < 0 or (after.total_steps and steps * 100 >= after.total_steps):
        return True
    # The written progress is old.
    return before.updated_at is None or after.updated_at is None or after.updated_at - before.updated_at >= interval


def _is_newer(reading: Progress, stored: Progress | None) -> bool:
    if stored is None or stored.attempt != reading.attempt or stored.updated_at is None:
        return True
    return reading.updated_at is not None and reading.updated_at > stored.updated_at
