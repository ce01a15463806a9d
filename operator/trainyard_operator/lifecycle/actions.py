"""What a plan consists of: the status to write, what to do then, and when to look again."""

from dataclasses import dataclass

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.observation import Worker
from trainyard_operator.lifecycle.status_builder import Draft, Event


@dataclass(frozen=True, slots=True)
class CreateWorkers:
    """Create these pods of the current attempt, and before them what they need (Service, ConfigMap)."""

    attempt: int
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CreatePlaceholders:
    """Create pods that do nothing but find room for workers to come, beside the pods of this group."""

    group: int
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeleteWorkers:
    """Delete these pods."""

    workers: tuple[Worker, ...]
    force: bool = False
    """At once, without waiting for the kubelet to say that they have ended."""


@dataclass(frozen=True, slots=True)
class OrderWorkers:
    """Tell the launchers in these pods to start an attempt, or (None) to end with the code that they hold."""

    workers: tuple[Worker, ...]
    attempt: int | None


Action = CreateWorkers | CreatePlaceholders | DeleteWorkers | OrderWorkers


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write down, then what to do, then when to look again even if nothing happens."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    wake_after: float | None = None
    """Seconds; 0: at once."""


def ledger(draft: Draft) -> Plan:
    """A decision: write it down, and act upon it only once it is stored."""
    return Plan(draft.status, events=tuple(draft.events), wake_after=0)


def settle(
    draft: Draft,
    *,
    delete: "list[Worker] | tuple[Worker, ...]" = (),
    actions: tuple[Action, ...] = (),
    wake_after: float | None = None,
) -> Plan:
    """Nothing to decide: what there is to do now, with the deletion of pods that are not being deleted yet."""
    doomed = tuple(w for w in delete if not w.terminating)
    if doomed:
        actions = (*actions, DeleteWorkers(doomed))
    return Plan(draft.status, actions, tuple(draft.events), wake_after)


def rest(draft: Draft, reason: Reason, message: str) -> None:
    """Say that no attempt is under way any more."""
    for kind in (C.RUNNING, C.PROGRESSING, C.DEGRADED, C.RESTARTING):
        draft.clear(kind, reason, message)


def fail(draft: Draft, reason: Reason, message: str) -> Plan:
    """End the job, for the worse."""
    draft.update(completion_time=draft.now)
    rest(draft, Reason.FINISHED, "the job has failed")
    draft.set(C.FAILED, True, reason, message, event="Warning")
    return ledger(draft)
