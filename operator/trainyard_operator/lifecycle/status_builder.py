"""The status that a plan composes: typed fields, conditions with their transition times, the phase, and events."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Literal, Self

from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.resource.elastic import ElasticStatus
from trainyard.resource.job import TrainingJob
from trainyard.resource.scheduling import SchedulingStatus
from trainyard.resource.status import (
    Condition,
    ConditionType,
    Failure,
    Goodput,
    Phase,
    Reason,
    TrainingJobStatus,
    WorkerCounts,
)
from trainyard_operator.lifecycle.condition_list import one_of_each_type, with_condition
from trainyard_operator.pod_input.storable import storable_values
from trainyard_operator.pod_input.text import clean_text

MAX_MESSAGE = 8192
"""Characters of a condition's message: with a dozen of conditions a status stays small. The schema allows 32,768."""
MAX_EVENT_MESSAGE = 1024
"""Characters of an event's message: the API server refuses more."""

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event about the job."""

    type: EventType
    reason: str
    message: str


@dataclass(slots=True, kw_only=True)
class StatusFields:
    """The fields of a status that a plan may assign, with the types of `TrainingJobStatus`.

    `phase` and `conditions` are missing: the builder derives the phase and maintains the conditions.
    """

    observed_generation: int
    attempt: int
    accepted_revision: str | None
    pod_attempt_override: int | None
    slow_nodes: tuple[str, ...]
    slow_nodes_readmitted: bool
    restarts: int
    restarts_counted: int
    disruptions: int
    restarts_without_progress: int
    refusing_nodes: tuple[str, ...]
    faulty_nodes: tuple[str, ...]
    succeeded_indexes: str
    selector: str | None
    running_seconds: int
    scheduling: SchedulingStatus | None
    start_time: datetime | None
    completion_time: datetime | None
    workers: WorkerCounts
    progress: Progress | None
    elastic: ElasticStatus | None
    goodput: Goodput | None
    last_failure: Failure | None


@dataclass(slots=True, kw_only=True)
class StatusBuilder(StatusFields):
    """A status under construction: assign fields, set conditions, record events, then `build`."""

    effective_job: TrainingJob
    """The job at the size of its current attempt, which may have fewer workers than desired."""
    now: datetime
    """Time of the observation, in whole seconds."""
    conditions: tuple[Condition, ...]
    events: list[Event] = field(default_factory=list)

    @classmethod
    def from_job(cls, job: TrainingJob, now: datetime) -> Self:
        """Return a builder that starts from the stored status of the job."""
        status = job.status
        return cls(
            effective_job=job.effective_job,
            now=now.replace(microsecond=0),
            conditions=one_of_each_type(status.conditions),
            observed_generation=job.metadata.generation,
            attempt=status.attempt,
            accepted_revision=status.accepted_revision,
            pod_attempt_override=status.pod_attempt_override,
            slow_nodes=status.slow_nodes,
            slow_nodes_readmitted=status.slow_nodes_readmitted,
            restarts=status.restarts,
            restarts_counted=status.restarts_counted,
            disruptions=status.disruptions,
            restarts_without_progress=status.restarts_without_progress,
            refusing_nodes=status.refusing_nodes,
            faulty_nodes=status.faulty_nodes,
            succeeded_indexes=status.succeeded_indexes,
            selector=_selector(job),
            running_seconds=status.running_seconds,
            scheduling=status.scheduling,
            start_time=status.start_time,
            completion_time=status.completion_time,
            workers=status.workers,
            progress=status.progress,
            elastic=status.elastic,
            goodput=status.goodput,
            last_failure=status.last_failure,
        )

    def build(self) -> TrainingJobStatus:
        """Return the status, validated, with the phase that follows from its conditions.

        Every value can be stored, whatever a pod has made of it (see `trainyard_operator.pod_input.storable`).

        Raises:
            pydantic.ValidationError: a value is of another type than its field, or is negative where none may be.
        """
        values = {f.name: getattr(self, f.name) for f in fields(StatusFields)}
        values = storable_values(TrainingJobStatus, {**values, "conditions": self.conditions})
        return TrainingJobStatus(phase=self._phase(), **values)

    @property
    def pod_attempt(self) -> int:
        """Attempt number in the names of the current pods."""
        return self.pod_attempt_override or self.attempt

    @property
    def avoided_nodes(self) -> tuple[str, ...]:
        """Nodes that the pods of the current attempt must not be scheduled on."""
        slow = () if self.slow_nodes_readmitted else self.slow_nodes
        return tuple(dict.fromkeys((*slow, *self.refusing_nodes, *self.faulty_nodes)))

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of a type; None if it was never set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Return whether the condition of a type is True."""
        condition = self.condition(kind)
        return condition is not None and condition.status == "True"

    @property
    def suspending(self) -> bool:
        """Whether the job is to be suspended and its pods are ending."""
        condition = self.condition(ConditionType.SUSPENDED)
        return condition is not None and condition.status == "False" and condition.reason == Reason.SUSPENDING

    def set_condition(
        self, kind: ConditionType, holds: bool, reason: Reason, message: str, event: EventType | None = None
    ) -> None:
        """Set a condition, and record it as an event of type `event` if its status or reason changed."""
        before = self.condition(kind)
        status: Literal["True", "False"] = "True" if holds else "False"
        after = Condition(
            type=kind,
            status=status,
            reason=reason,
            message=clean_text(message, MAX_MESSAGE),
            last_transition_time=self.now,
            observed_generation=self.effective_job.metadata.generation,
        )
        if event and (before is None or (before.status, before.reason) != (after.status, after.reason)):
            self.record_event(event, reason, message)
        self.conditions = with_condition(self.conditions, after)

    def clear_condition(self, kind: ConditionType, reason: Reason, message: str) -> None:
        """Set a condition to False, unless it was never set."""
        if self.condition(kind):
            self.set_condition(kind, False, reason, message)

    def record_event(self, type_: EventType, reason: str, message: str) -> None:
        """Add an event, to be stored after the status."""
        self.events.append(Event(type_, reason, clean_text(message, MAX_EVENT_MESSAGE)))

    def _phase(self) -> Phase:
        """Return the phase of the first condition in this list that is True, else Pending."""
        ranking = (
            (ConditionType.SUCCEEDED, Phase.SUCCEEDED),
            (ConditionType.FAILED, Phase.FAILED),
            (ConditionType.SUSPENDED, Phase.SUSPENDED),
            (ConditionType.RUNNING, Phase.RUNNING),
            (ConditionType.RESTARTING, Phase.RESTARTING),
        )
        default = Phase.SUSPENDING if self.suspending else Phase.PENDING
        return next((phase for kind, phase in ranking if self.is_true(kind)), default)


def _selector(job: TrainingJob) -> str:
    """Return the label selector of the job's worker pods, of any attempt."""
    return f"{constants.LABEL_JOB}={job.metadata.name},{constants.LABEL_ROLE}={constants.ROLE_WORKER}"
