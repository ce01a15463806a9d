"""The conditions Running and Progressing of a group of pods, worker counts, and messages about them."""

from datetime import datetime, timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, WorkerCounts
from trainyard_operator.lifecycle.degradation import (
    report_blocked_sidecars,
    report_degradation,
    report_unusable_input,
)
from trainyard_operator.lifecycle.observation import Observation, WorkerPod, WorkerState
from trainyard_operator.lifecycle.startup_timeout import has_stepped, startup_message
from trainyard_operator.lifecycle.status_builder import EventType, StatusBuilder

SLOW_START = timedelta(seconds=120)
"""How long the kubelet may prepare the containers of a pod before that is reported."""
SILENT_SCHEDULER = timedelta(seconds=60)
"""How long a pod may wait for a scheduler to report about it before that is reported."""
_URGENCY = (
    *(Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG, Reason.CRASH_LOOP, Reason.QUEUE_UNAVAILABLE),
    *(Reason.UNSCHEDULABLE, Reason.QUEUED),
)
"""Reasons of blockers: those that only a user can remove come first."""


def count_workers(job: TrainingJob, workers: tuple[WorkerPod, ...], succeeded: set[int]) -> WorkerCounts:
    """Return how many workers are in each state; a parameter server is not counted.

    Args:
        job: the job at the size of its current attempt.
        workers: the pods of the attempt that exist.
        succeeded: indexes of its pods that have succeeded, whether or not they still exist.
    """
    workers = tuple(w for w in workers if not w.is_parameter_server)
    states = [w.state for w in workers]
    return WorkerCounts(
        desired=0 if job.spec.suspend else job.spec.workers.replicas,
        running=states.count(WorkerState.RUNNING),
        ready=sum(w.ready and w.state is WorkerState.RUNNING for w in workers),
        succeeded=sum(not job.spec.is_parameter_server(index) for index in succeeded),
        failed=states.count(WorkerState.FAILED),
    )


def set_running(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> None:
    """Set the conditions of a group whose workers all run, and copy its progress."""
    attempt, spec, progress = builder.attempt, builder.effective_job.spec, observation.progress
    noun = "worker runs" if spec.pods == 1 else "workers run" if not spec.servers else "workers and their server run"
    message = f"attempt {attempt}: {spec.workers.replicas} {noun}"
    builder.set_condition(C.RUNNING, True, Reason.ALL_WORKERS_RUNNING, message, event="Normal")
    builder.clear_condition(C.RESTARTING, Reason.RESTARTED, f"attempt {attempt} runs")
    builder.refusing_nodes = ()
    report_blocked_sidecars(builder, workers)
    evaluates = spec.trainer is not None and spec.trainer.task == "evaluate"
    # A metrics page of another attempt, or without a step, is not progress of this attempt. An evaluation makes none.
    if progress is not None and progress.attempt == attempt and (progress.step > 0 or evaluates):
        report_degradation(builder, progress, workers)
        builder.progress = progress
    report_unusable_input(builder, observation.page_problem, workers)
    # A user's own program need not report progress: without any, Progressing stays unset.
    if spec.trainer is None and builder.progress is None:
        return
    if evaluates:
        builder.set_condition(C.PROGRESSING, True, Reason.EVALUATING, f"attempt {attempt} evaluates the model")
    elif has_stepped(builder.progress, attempt):
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
        first = min(blockers, key=lambda blocker: _URGENCY.index(blocker.reason))
        affected = sum(blocker.reason is first.reason for blocker in blockers)
        message = f"{affected} of {spec.pods} {noun}: {first.message}"
        event: EventType = "Normal" if first.reason is Reason.QUEUED else "Warning"
        builder.set_condition(C.RUNNING, False, first.reason, message, event=event)
    # No scheduler looks at a pod: it is not there, or it has another name.
    elif unseen := [w for w in workers if w.unseen_since and builder.now - w.unseen_since >= SILENT_SCHEDULER]:
        message = _silent_scheduler_message(builder, unseen)
        builder.set_condition(C.RUNNING, False, Reason.SCHEDULER_SILENT, message, event="Warning")
    # A kubelet has been preparing a pod for long: the API server does not say why.
    elif slow := [w for w in workers if w.creating_since and builder.now - w.creating_since >= SLOW_START]:
        builder.set_condition(
            C.RUNNING, False, Reason.CONTAINER_CREATING, _slow_start_message(builder, slow), event="Warning"
        )
    # Nothing is wrong: the pods just have not started yet.
    else:
        set_waiting_for_pods(builder, running=sum(w.state is not WorkerState.PENDING for w in workers))


def set_waiting_for_pods(builder: StatusBuilder, *, running: int) -> None:
    """Set Running to False because pods do not exist or have not started yet, which is as it should be."""
    spec = builder.effective_job.spec
    noun = "pods" if spec.servers else "workers"
    builder.set_condition(C.RUNNING, False, Reason.WAITING_FOR_PODS, f"{running} of {spec.pods} {noun} run")


def _silent_scheduler_message(builder: StatusBuilder, unseen: list[WorkerPod]) -> str:
    """Return the message about pods that no scheduler has reported about."""
    spec, first = builder.effective_job.spec, min(unseen, key=lambda w: w.index)
    return (
        f"{len(unseen)} of {spec.pods} {'pods' if spec.servers else 'workers'}: no scheduler has reported about pod "
        f"{first.name} for more than {SILENT_SCHEDULER.total_seconds():.0f} s; check that the scheduler runs that its "
        f"spec.schedulerName names (kubectl get pod {first.name} -o jsonpath='{{.spec.schedulerName}}'), or change "
        "spec.scheduling.gang or spec.workers.template.spec.schedulerName"
    )


def _slow_start_message(builder: StatusBuilder, slow: list[WorkerPod]) -> str:
    """Return the message about pods whose containers have been prepared for long."""
    spec, first = builder.effective_job.spec, min(slow, key=lambda w: w.index)
    noun = "pods" if spec.servers else "workers"
    return (
        f"{len(slow)} of {spec.pods} {noun}: pod {first.name} has been starting on node {first.node} for more than "
        f"{SLOW_START.total_seconds():.0f} s: its images are being pulled, or a volume, ConfigMap or Secret of "
        "spec.workers.template is missing, or an init container has not ended; see: kubectl "
        f"describe pod {first.name}"
    )


def seconds_until_slow_start(workers: tuple[WorkerPod, ...], now: datetime) -> float | None:
    """Return the seconds until the next pod has been starting, or unseen by a scheduler, for long; None without one."""
    left = [(w.creating_since + SLOW_START - now).total_seconds() for w in workers if w.creating_since]
    left += [(w.unseen_since + SILENT_SCHEDULER - now).total_seconds() for w in workers if w.unseen_since]
    return min((seconds for seconds in left if seconds > 0), default=None)


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
