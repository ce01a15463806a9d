"""What goes wrong in a run that goes on all the same: events, and the condition Degraded."""

from trainyard.status import ConditionType as C
from trainyard.status import Progress, Reason
from trainyard_operator.core.draft import Draft

RECENT_STEPS = 100
"""For how many steps after one that has changed nothing a job counts as degraded."""


def tell_mishaps(draft: Draft, read: Progress) -> None:
    """What the newest figures show that the status does not hold yet: so each mishap is told once."""
    before = draft.status.progress
    if before is None or before.attempt != read.attempt:
        before = Progress()
    tell_checkpoints(draft, read, before)
    tell_bad_steps(draft, read, before)


def tell_checkpoints(draft: Draft, read: Progress, before: Progress) -> None:
    """Checkpoints that were taken up, damaged, or not written."""
    damaged, failures = read.checkpoints_damaged or 0, read.checkpoint_failures or 0
    log = f"the log of pod {draft.job.pod_name(draft.status.group, 0)} says why"
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
    """Steps that have changed nothing: an event for those that are new, and a condition while they are recent."""
    attempt, last = read.attempt, read.last_skipped_step
    if (new := (read.skipped_steps or 0) - (before.skipped_steps or 0)) > 0:
        steps = f"step {last}" if new == 1 else f"{new} steps up to {last}"
        limit = draft.job.spec.bad_steps.limit
        text = f"attempt {attempt}: {steps} changed nothing, since the gradient was not finite, or a spike"
        draft.tell("Warning", Reason.NON_FINITE, f"{text} (spec.health.nonFinite bears {limit} in a row)")
    if (read.rollbacks or 0) > (before.rollbacks or 0):
        text = f"attempt {attempt}: back at the checkpoint of step {read.checkpoint_step}, and on with new samples"
        draft.tell("Warning", Reason.ROLLED_BACK, text)
    if last and read.step - last < RECENT_STEPS:
        text = f"attempt {attempt}: {read.skipped_steps} steps have changed nothing, the last one was step {last}"
        draft.set(C.DEGRADED, True, Reason.NON_FINITE, text)
    elif (degraded := draft.status.condition(C.DEGRADED)) and degraded.reason == Reason.NON_FINITE:
        draft.clear(C.DEGRADED, Reason.HEALTHY, f"attempt {attempt}: the last {RECENT_STEPS} steps were good")
