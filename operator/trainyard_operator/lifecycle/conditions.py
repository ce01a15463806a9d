"""The conditions Running and Progressing of a group of pods, worker counts, and messages about them."""

from datetime import timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, WorkerCounts
from trainyard_operator.lifecycle.degradation import report_degradation, report_unusable_input
from trainyard_operator.lifecycle.observation import Observation, WorkerPod, WorkerState
from trainyard_operator.lifecycle.startup_timeout import has_stepped, startup_message
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def count_workers(job: TrainingJob, workers: tuple[WorkerPod, ...]) -> WorkerCounts:
    """Return how many workers are in each state; a parameter server is not counted."""
    workers = tuple(w for w in workers if not w.is_parameter_server)
    states = [w.state for w in workers]
    return WorkerCounts(
        desired=0 if job.spec.suspend else job.spec.workers.replicas,
        running=states.count(WorkerState.RUNNING),
        ready=sum(w.ready and w.state is WorkerState.RUNNING for w in workers),
        succeeded=states.count(WorkerState.SUCCEEDED),
        failed=states.count(WorkerState.FAILED),
    )


def set_running(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> None:
    """Set the conditions of a group whose workers all run, and copy its progress."""
    attempt, spec, progress = builder.attempt, builder.effective_job.spec, observation.progress
    noun = "worker runs" if spec.pods == 1 else "workers run" if not spec.servers else "workers and their server run"
    message = f"attempt {attempt}: {spec.workers.replicas} {noun}"
    builder.set_condition(C.RUNNING, True, Reason.ALL_WORKERS_RUNNING, message, event="Normal")
    builder.clear_condition(C.RESTARTING, Reason.RESTARTED, f"attempt {attempt} runs")
    # A metrics page of another attempt, or without a step, is not progress of this attempt.
    if progress is not None and progress.attempt == attempt and progress.step > 0:
        report_degradation(builder, progress, workers)
        builder.progress = progress
    report_unusable_input(builder, observation.page_problem, workers)
    # A user's own program need not report progress: without any, Progressing stays unset.
    if spec.trainer is None and builder.progress is None:
        return
    if has_stepped(builder.progress, attempt):
        builder.set_condition(C.PROGRESSING, True, Reason.STEPPING, f"attempt {attempt} makes steps")
    else:
        builder.set_condition(C.PROGRESSING, False, Reason.NO_STEP_YET, startup_message(builder, progress))


def set_waiting(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> None:
    """Set Running to False with the most urgent reason why not all pods of the group run."""
    spec, error = builder.effective_job.spec, observation.creation_error
    noun = "pods" if spec.servers else "workers"
    blockers = [w.blocker for w in workers if w.blocker]
    # The API server refused a pod: report that first, since no pod of the group may exist at all.
    if error:
        builder.set_condition(C.RUNNING, False, error.reason, error.message, event="Warning")
    # Pods exist but cannot start: report the blocker that only a user can remove before one that may pass.
    elif blockers:
        urgency = (Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG, Reason.UNSCHEDULABLE)
        first = min(blockers, key=lambda blocker: urgency.index(blocker.reason))
        affected = sum(blocker.reason is first.reason for blocker in blockers)
        message = f"{affected} of {spec.pods} {noun}: {first.message}"
        builder.set_condition(C.RUNNING, False, first.reason, message, event="Warning")
    # Nothing is wrong: the pods just have not started yet.
    else:
        running = sum(w.state is not WorkerState.PENDING for w in workers)
        builder.set_condition(C.RUNNING, False, Reason.WAITING_FOR_PODS, f"{running} of {spec.pods} {noun} run")


def overdue_message(worker: WorkerPod, patience: timedelta) -> str:
    """Return the message of the event that announces the forced deletion of a pod."""
    late = f"{patience.total_seconds():.0f} s after its grace period"
    return (
        f"pod {worker.name} has not terminated {late}, so node {worker.node} is considered lost; deleting the pod by "
        "force"
    )


def progress_summary(progress: Progress | None) -> str:
    """Return the last step and loss as the end of a sentence; empty without progress."""
    if progress is None:
        return ""
    loss = f", loss {progress.loss:.4f}" if progress.loss is not None else ""
    return f" at step {progress.step}{loss}"
