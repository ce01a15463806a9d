"""The parts of a plan: the status to write, the actions to take, and when to reconcile again."""

from collections.abc import Iterable
from dataclasses import dataclass

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.lifecycle.status_builder import Event, StatusBuilder


@dataclass(frozen=True, slots=True)
class AcceptSpec:
    """Store a snapshot of the spec, and plan again with the result (`Observation.acceptance`)."""

    dry_run: bool
    """Whether the API server is asked first whether it would create the pods of the job."""


@dataclass(frozen=True, slots=True)
class CreateWorkers:
    """Create pods of the current attempt, after the objects that they need (Service, ConfigMap, Secret, claim)."""

    attempt: int
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CreatePlaceholders:
    """Create placeholder pods, which detect free capacity for more workers of the running group."""

    pod_attempt: int
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeleteWorkers:
    """Delete pods."""

    workers: tuple[WorkerPod, ...]
    force: bool = False
    """Delete with grace period 0: the pod leaves the API at once, without a confirmation by its kubelet."""


@dataclass(frozen=True, slots=True)
class RestartInPlace:
    """Request from the launchers in pods that they start an attempt."""

    workers: tuple[WorkerPod, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class ReleaseWorkers:
    """Request from launchers that await a restart that they exit, with the exit code of their failed ranks."""

    workers: tuple[WorkerPod, ...]


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the job itself; the garbage collector deletes what it owns."""


Action = AcceptSpec | CreateWorkers | CreatePlaceholders | DeleteWorkers | RestartInPlace | ReleaseWorkers | DeleteJob


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of one reconciliation: first write the status, then act, then wait."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    wake_after: float | None = None
    """Seconds until the next reconciliation even if nothing changes; 0: at once; None: never."""


def record_decision(builder: StatusBuilder) -> Plan:
    """Return a plan that only writes the status; the next plan acts on what was stored."""
    return Plan(builder.build(), events=tuple(builder.events), wake_after=0)


def act_now(
    builder: StatusBuilder,
    *,
    delete: Iterable[WorkerPod] = (),
    actions: tuple[Action, ...] = (),
    wake_after: float | None = None,
) -> Plan:
    """Return a plan that takes actions and deletes those of the pods in `delete` that are not terminating yet."""
    to_delete = tuple(w for w in delete if not w.terminating)
    if to_delete:
        actions = (*actions, DeleteWorkers(to_delete))
    return Plan(builder.build(), actions, tuple(builder.events), wake_after)


def clear_active_conditions(builder: StatusBuilder, reason: Reason, message: str) -> None:
    """Set the conditions of an active attempt to False."""
    for kind in (C.RUNNING, C.PROGRESSING, C.DEGRADED, C.RESTARTING):
        builder.clear_condition(kind, reason, message)


def fail_job(builder: StatusBuilder, reason: Reason, message: str) -> Plan:
    """Return a plan that ends the job with the condition Failed."""
    builder.completion_time = builder.now
    clear_active_conditions(builder, Reason.FINISHED, "the job has failed")
    builder.set_condition(C.FAILED, True, reason, message, event="Warning")
    return record_decision(builder)
