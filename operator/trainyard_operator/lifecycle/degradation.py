"""Problems of a run that continues nevertheless: events, and the condition Degraded."""

from collections.abc import Iterable

from trainyard.protocol.launcher_protocol import LAUNCHER_PORT
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.lifecycle.status_builder import StatusBuilder

RECENT_STEPS = 100
"""Steps after a skipped step for which the job counts as degraded."""
_SIDECAR_REASONS = (Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG, Reason.CRASH_LOOP)


def report_degradation(builder: StatusBuilder, progress: Progress, workers: Iterable[WorkerPod] = ()) -> None:
    """Report what the newest progress shows and the status does not hold yet, so each problem is reported once."""
    previous = builder.progress
    # Counters restart with each attempt, so progress of another attempt is no base for a comparison.
    if previous is None or previous.attempt != progress.attempt:
        previous = Progress()
    report_checkpoints(builder, progress, previous)
    report_bad_steps(builder, progress, previous)
    set_degraded_condition(builder, progress, straggler_message(builder.effective_job, progress, workers))


def report_checkpoints(builder: StatusBuilder, progress: Progress, previous: Progress) -> None:
    """Record events about checkpoints that were damaged, loaded, or could not be written."""
    damaged, failures = progress.checkpoints_damaged or 0, progress.checkpoint_failures or 0
    log = f"see the log of pod {builder.effective_job.pod_name(builder.pod_attempt, 0)}"
    # A damaged checkpoint was found: say what the run resumed from instead.
    if damaged > (previous.checkpoints_damaged or 0):
        what = "a checkpoint is" if damaged == 1 else f"{damaged} checkpoints are"
        if progress.resumed_step:
            consequence = "so the run resumed from an older one"
        else:
            consequence = "and there is no other one, so the run started from step 0"
        text = f"attempt {progress.attempt}: {what} damaged, {consequence}; {log}"
        builder.record_event("Warning", Reason.CHECKPOINT_DAMAGED, text)
    # The attempt resumed from a checkpoint.
    if progress.resumed_step and not previous.resumed_step:
        text = f"attempt {progress.attempt}: continuing after step {progress.resumed_step}"
        builder.record_event("Normal", Reason.CHECKPOINT_LOADED, text)
    # A checkpoint could not be written: say which one is the newest, since that is what a restart resumes from.
    if (new := failures - (previous.checkpoint_failures or 0)) > 0:
        what = "a checkpoint" if new == 1 else f"{new} checkpoints"
        step = progress.checkpoint_step
        newest = f"the newest checkpoint is of step {step}" if step else "there is no checkpoint yet"
        text = f"attempt {progress.attempt}: {what} could not be written; training continues; {newest}; {log}"
        builder.record_event("Warning", Reason.CHECKPOINT_FAILED, text)


def report_bad_steps(builder: StatusBuilder, progress: Progress, previous: Progress) -> None:
    """Record events about steps that were skipped, and about rollbacks to a checkpoint."""
    attempt, last = progress.attempt, progress.last_skipped_step
    # Steps were skipped: say how many more in a row trigger the policy.
    if (new := (progress.skipped_steps or 0) - (previous.skipped_steps or 0)) > 0:
        steps = f"step {last} was" if new == 1 else f"{new} steps up to {last} were"
        limit = builder.effective_job.spec.bad_steps.limit
        text = f"attempt {attempt}: {steps} skipped, since the gradient was not finite or spiked"
        text += f" (spec.health.badSteps.limit is {limit} consecutive steps)"
        builder.record_event("Warning", Reason.BAD_STEPS, text)
    # The trainer rolled back to its last checkpoint.
    if (progress.rollbacks or 0) > (previous.rollbacks or 0):
        text = f"attempt {attempt}: rolled back to the checkpoint of step {progress.checkpoint_step}; continuing with "
        builder.record_event("Warning", Reason.ROLLED_BACK, text + "new samples")


def set_degraded_condition(builder: StatusBuilder, progress: Progress, straggler: str | None) -> None:
    """Set Degraded while a rank is slow (`straggler`: the message about it) and for a while after a skipped step."""
    attempt, last, degraded = progress.attempt, progress.last_skipped_step, builder.condition(C.DEGRADED)
    # A straggler is reported first, since it slows down every step.
    if straggler is not None:
        builder.set_condition(C.DEGRADED, True, Reason.STRAGGLER, straggler, event="Warning")
    # A step was skipped recently.
    elif last and progress.step - last < RECENT_STEPS:
        text = f"attempt {attempt}: {progress.skipped_steps} steps were skipped, the last one was step {last}"
        builder.set_condition(C.DEGRADED, True, Reason.BAD_STEPS, text)
    # Neither holds: clear the condition, unless it was set for another reason (a reduced size).
    elif degraded is not None and degraded.reason in (Reason.BAD_STEPS, Reason.STRAGGLER):
        text = f"attempt {attempt}: no straggler, and no skipped step in the last {RECENT_STEPS} steps"
        builder.clear_condition(C.DEGRADED, Reason.HEALTHY, text)


def report_blocked_sidecars(builder: StatusBuilder, workers: Iterable[WorkerPod]) -> None:
    """Set Degraded while a sidecar of a running worker cannot start, and clear it afterwards."""
    degraded = builder.condition(C.DEGRADED)
    set_by_sidecar = degraded is not None and degraded.status == "True" and degraded.reason in _SIDECAR_REASONS
    blocked = next((w.blocker for w in workers if w.blocker and w.state is WorkerState.RUNNING), None)
    # Any other reason of Degraded is more urgent, and stays.
    if blocked is not None and (set_by_sidecar or not builder.is_true(C.DEGRADED)):
        builder.set_condition(C.DEGRADED, True, blocked.reason, blocked.message, event="Warning")
    elif blocked is None and set_by_sidecar:
        builder.clear_condition(C.DEGRADED, Reason.HEALTHY, "all containers run")


def report_unusable_input(builder: StatusBuilder, page_problem: str | None, workers: Iterable[WorkerPod]) -> None:
    """Set Degraded while something that pods say cannot be used, unless it already says something more important.

    Args:
        builder: the status.
        page_problem: what is wrong with rank 0's metrics page; None if nothing is.
        workers: the pods of the attempt.
    """
    degraded, silent = builder.condition(C.DEGRADED), [w for w in workers if w.launcher_silent and not w.ready]
    reported = degraded is not None and degraded.reason in (Reason.METRICS_REFUSED, Reason.LAUNCHER_SILENT)
    # Another reason is more important.
    if builder.is_true(C.DEGRADED) and not reported:
        return
    # A pod is not ready, and whether it awaits a restart is unknown: the group may wait for it in vain.
    if silent:
        text = f"pod {silent[0].name} is not ready, and its launcher does not answer on port {LAUNCHER_PORT}, so its"
        text += " group cannot be restarted in place; allow the operator to reach that port of the pods"
        builder.set_condition(C.DEGRADED, True, Reason.LAUNCHER_SILENT, text, event="Warning")
    # The page has a problem.
    elif page_problem is not None:
        builder.set_condition(C.DEGRADED, True, Reason.METRICS_REFUSED, page_problem, event="Warning")
    # The problem is gone.
    elif reported:
        builder.clear_condition(C.DEGRADED, Reason.HEALTHY, "metrics page and launchers answer")


def straggler_message(job: TrainingJob, progress: Progress, workers: Iterable[WorkerPod]) -> str | None:
    """Return which rank is slow, where, and by how much; None if no rank is slow."""
    worker = find_straggler(job, progress, workers)
    if worker is None:
        return None
    where = f"rank {progress.straggler_rank} (pod {worker.name}, node {worker.node})"
    factor = f"{progress.straggler_ratio:.1f} times as long as the median rank"
    return f"attempt {progress.attempt}: {where} takes {factor} for the same computation"


def find_straggler(job: TrainingJob, progress: Progress, workers: Iterable[WorkerPod]) -> WorkerPod | None:
    """Return the pod of the rank that is reported as too slow; None if no rank is, or its pod is gone."""
    if progress.straggler_rank is None:
        return None
    index = progress.straggler_rank // job.spec.procs_per_worker
    return next((w for w in workers if w.index == index), None)
