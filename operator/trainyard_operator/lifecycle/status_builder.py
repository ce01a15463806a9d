"""The status that a plan is writing: conditions with their transitions, the phase, and the events to tell."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition, ConditionType, Phase, Reason, TrainingJobStatus

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event on the job: one line of its story."""

    type: EventType
    reason: str
    message: str


class Draft:
    """A status in the making. `status` is always complete, with the phase derived from the conditions."""

    def __init__(self, job: TrainingJob, now: datetime) -> None:
        self.job = job.current
        """The job as its current attempt has it, perhaps with fewer workers than are wanted."""
        self.now = now.replace(microsecond=0)
        self.events: list[Event] = []
        self._status = job.status.replace(observed_generation=job.metadata.generation)

    @property
    def status(self) -> TrainingJobStatus:
        """The status so far."""
        return self._status.replace(phase=_phase(self._status))

    def update(self, **fields: Any) -> None:
        """Set fields of the status."""
        self._status = self._status.replace(**fields)

    def tell(self, type_: EventType, reason: str, message: str) -> None:
        """Add an event."""
        self.events.append(Event(type_, reason, message))

    def set(
        self, kind: ConditionType, holds: bool, reason: Reason, message: str, event: EventType | None = None
    ) -> None:
        """Set a condition; tell it as an event too if its status or reason is new."""
        before = self._status.condition(kind)
        status: Literal["True", "False"] = "True" if holds else "False"
        after = Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=before.last_transition_time if before and before.status == status else self.now,
            observed_generation=self.job.metadata.generation,
        )
        if event and (before is None or (before.status, before.reason) != (after.status, after.reason)):
            self.tell(event, reason, message)
        others = [c for c in self._status.conditions if c.type != kind]
        order = list(ConditionType)
        conditions = sorted([*others, after], key=lambda c: order.index(ConditionType(c.type)))
        self._status = self._status.replace(conditions=tuple(conditions))

    def clear(self, kind: ConditionType, reason: Reason, message: str) -> None:
        """Set a condition to False, if it was ever set."""
        if self._status.condition(kind):
            self.set(kind, False, reason, message)


def _phase(status: TrainingJobStatus) -> Phase:
    """The first of these that holds."""
    ranking = (
        (ConditionType.SUCCEEDED, Phase.SUCCEEDED),
        (ConditionType.FAILED, Phase.FAILED),
        (ConditionType.SUSPENDED, Phase.SUSPENDED),
        (ConditionType.RUNNING, Phase.RUNNING),
        (ConditionType.RESTARTING, Phase.RESTARTING),
    )
    return next((phase for kind, phase in ranking if status.is_true(kind)), Phase.PENDING)
