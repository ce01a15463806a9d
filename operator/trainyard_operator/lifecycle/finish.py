"""The end of a job: when it has succeeded, what becomes of its pods, and when it is deleted itself."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from trainyard.resource.spec import TrainingJobSpec
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import (
    Action,
    DeleteJob,
    Plan,
    ReleaseWorkers,
    act_now,
    clear_active_conditions,
    record_decision,
)
from trainyard_operator.lifecycle.conditions import progress_summary
from trainyard_operator.lifecycle.diagnosis import Diagnosis
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def has_succeeded(spec: TrainingJobSpec, succeeded: Collection[int]) -> bool:
    """Return whether a job has succeeded (spec.successPolicy), given the indexes of the pods that have."""
    needed = range(spec.pods) if spec.success_policy == "AllWorkers" else range(1)
    return all(index in succeeded for index in needed)


def await_success(builder: StatusBuilder, workers: Collection[WorkerPod], diagnosis: Diagnosis) -> Diagnosis:
    """Return a failure of another worker as one that may be an effect, if rank 0 decides about the success.

    When rank 0 ends, its peers may fail because it is gone, and kubelets report in any order: such a failure waits for
    a moment, in which the success of rank 0 may be observed.
    """
    spec, decides = builder.effective_job.spec, [w for w in workers if w.index == 0 and w.state is WorkerState.RUNNING]
    if spec.success_policy == "AllWorkers" or not decides or diagnosis.failure.pod == decides[0].name:
        return diagnosis
    if not diagnosis.counts or diagnosis.secondary_since is not None:
        return diagnosis
    ended_at = next((w.finished_at for w in workers if w.name == diagnosis.failure.pod), None)
    return replace(diagnosis, secondary_since=ended_at)


def succeed(builder: StatusBuilder, workers: Collection[WorkerPod]) -> Plan:
    """Return the plan that ends the job with the condition Succeeded and the message of rank 0."""
    everyone = builder.effective_job.spec.success_policy == "AllWorkers"
    reason, who = (
        (Reason.ALL_WORKERS_SUCCEEDED, "all workers")
        if everyone
        else (Reason.RANK_ZERO_SUCCEEDED, "worker 0, which ran rank 0,")
    )
    builder.completion_time = builder.now
    clear_active_conditions(builder, Reason.FINISHED, "the job has succeeded")
    text = f"{who} succeeded{progress_summary(builder.progress)}"
    message = next((w.trainer_message for w in workers if w.index == 0), None)
    if message and message.message:
        text += f"; {message.message}"
    builder.set_condition(C.SUCCEEDED, True, reason, text, event="Normal")
    return record_decision(builder)


def clean_up(builder: StatusBuilder, workers: Collection[WorkerPod]) -> Plan:
    """Return the plan that deletes pods of a finished job (spec.cleanPodPolicy), and the job itself when it is due."""
    policy = builder.effective_job.spec.clean_pod_policy
    # A pod that awaits a restart exits by itself, so that its exit code and log stay available.
    released = () if policy == "All" else tuple(w for w in workers if w.awaiting_restart and w.accepts_restart)
    actions: list[Action] = [ReleaseWorkers(released)] if released else []
    left = [w for w in workers if w not in released and _is_deleted(w, policy)]
    # The job has been finished for as long as it may.
    seconds = _seconds_until_expiry(builder)
    if seconds is not None and seconds <= 0:
        return act_now(builder, delete=left, actions=(*actions, DeleteJob()))
    return act_now(builder, delete=left, actions=tuple(actions), wake_after=seconds)


def _is_deleted(worker: WorkerPod, policy: str) -> bool:
    """Return whether a pod of a finished job is deleted."""
    # The user wants no pod, or none to be touched. A placeholder is no worker, and holds capacity for nothing.
    if policy == "All":
        return True
    if policy == "None":
        return worker.is_placeholder and worker.active
    # Every pod that holds resources is deleted, also one that a sidecar keeps alive. A pod that is about to end stays,
    # so that its log can be read.
    return worker.active and not worker.ends_by_itself


def _seconds_until_expiry(builder: StatusBuilder) -> float | None:
    """Return the seconds until a finished job is deleted; None if it stays."""
    ttl, finished_at = builder.effective_job.spec.ttl_seconds_after_finished, _finish_time(builder)
    if ttl is None or finished_at is None:
        return None
    return (finished_at + timedelta(seconds=ttl) - builder.now).total_seconds()


def _finish_time(builder: StatusBuilder) -> datetime | None:
    """Return when the job has finished; None if it has not."""
    if builder.completion_time is not None:
        return builder.completion_time
    ends = (builder.condition(kind) for kind in (C.SUCCEEDED, C.FAILED))
    return next((c.last_transition_time for c in ends if c is not None and c.status == "True"), None)
