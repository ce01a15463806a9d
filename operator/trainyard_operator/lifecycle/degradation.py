"""What goes wrong in a run that goes on all the same: events, and the condition Degraded."""

from collections.abc import Iterable

from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.observation import Worker
from trainyard_operator.lifecycle.status_builder import Draft

RECENT_STEPS = 100
"""For how many steps after one that has changed nothing a job counts as degraded."""


def tell_mishaps(draft: Draft, read: Progress, workers: Iterable[Worker] = ()) -> None:
    """What the newest figures show that the status does not hold yet: so each mishap is told once."""
    before = draft.status.progress
    if before is None or before.attempt != read.attempt:
        before = Progress()
    tell_checkpoints(draft, read, before)
    tell_bad_steps(draft, read, before)
    set_degraded(draft, read, tell_straggler(draft, read, workers))


def tell_checkpoints(draft: Draft, read: Progress, before: Progress) -> None:
    """Checkpoints that were taken up, damaged, or not written."""
    damaged, failures = read.checkpoints_damaged or 0, read.checkpoint_failures or 0
    log = f"the log of pod {draft.job.pod_name(draft.status.pod_attempt, 0)} says why"
    if damaged > (before.checkpoints_damaged or 0):
        what = "a checkpoint is" if damaged == 1 else f"{damaged} checkpoints are"
        follows = "so an older one was taken" if read.resumed_step else "and no other is left: the run starts afresh"
        draft.tell("Warning", Reason.CHECKPOINT_DAMAGED, f"attempt {read.attempt}: {what} damaged, {follows}; {log}")
    if read.resumed_step and not before.resumed_step:
        text = f"attempt {read.attempt}: continuing after step {read.resumed_step}"
        draft.tell("Normal", Reason.CHECKPOINT_LOADED, text)
    if (new := failures - (before.checkpoint_failures or 0)) > 0:
        what = "a checkpoint" if new == 1 else f"{new} checkpoints"
        newest = f"the newest is of step {read.checkpoint_step}" if read.checkpoint_step else "there is none yet"
        text = f"attempt {read.attempt}: {what} could not be written, and the training goes on; {newest}; {log}"
        draft.tell("Warning", Reason.CHECKPOINT_FAILED, text)


def tell_bad_steps(draft: Draft, read: Progress, before: Progress) -> None:
    """Steps that have changed nothing."""
    attempt, last = read.attempt, read.last_skipped_step
    if (new := (read.skipped_steps or 0) - (before.skipped_steps or 0)) > 0:
        steps = f"step {last}" if new == 1 else f"{new} steps up to {last}"
        limit = draft.job.spec.bad_steps.limit
        text = f"attempt {attempt}: {steps} changed nothing, since the gradient was not finite, or a spike"
        draft.tell("Warning", Reason.BAD_STEPS, f"{text} (spec.health.badSteps bears {limit} in a row)")
    if (read.rollbacks or 0) > (before.rollbacks or 0):
        text = f"attempt {attempt}: back at the checkpoint of step {read.checkpoint_step}, and on with new samples"
        draft.tell("Warning", Reason.ROLLED_BACK, text)


def set_degraded(draft: Draft, read: Progress, straggler: str | None) -> None:
    """The condition: for a while after a bad step, and as long as a rank is slow."""
    attempt, last, degraded = read.attempt, read.last_skipped_step, draft.status.condition(C.DEGRADED)
    if straggler is not None:
        draft.set(C.DEGRADED, True, Reason.STRAGGLER, straggler, event="Warning")
    elif last and read.step - last < RECENT_STEPS:
        text = f"attempt {attempt}: {read.skipped_steps} steps have changed nothing, the last one was step {last}"
        draft.set(C.DEGRADED, True, Reason.BAD_STEPS, text)
    elif degraded is not None and degraded.reason in (Reason.BAD_STEPS, Reason.STRAGGLER):
        draft.clear(C.DEGRADED, Reason.HEALTHY, f"attempt {attempt}: nothing was wrong lately")


def tell_straggler(draft: Draft, read: Progress, workers: Iterable[Worker]) -> str | None:
    """Which rank is slow, where, and by how much."""
    worker = straggler_of(draft.job, read, workers)
    if worker is None:
        return None
    text = f"rank {read.straggler_rank} (pod {worker.name}, node {worker.node}) takes {read.straggler_ratio:.1f} times"
    return f"attempt {read.attempt}: {text} as long as the median rank for the same computation"


def straggler_of(job: TrainingJob, read: Progress, workers: Iterable[Worker]) -> Worker | None:
    """The pod of the rank that is too slow, if one is."""
    if read.straggler_rank is None:
        return None
    index = read.straggler_rank // job.spec.procs_per_worker
    return next((w for w in workers if w.index == index), None)
