"""The lifecycle of one job as a series of plans, each made from the status that the previous one wrote."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from tests.builders import NOW, make_job, make_worker
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition, ConditionType, Phase, TrainingJobStatus
from trainyard_operator.lifecycle.actions import AcceptSpec, Plan
from trainyard_operator.lifecycle.observation import Acceptance, CreationError, Observation, WorkerPod
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.lifecycle.status_builder import Event

ACCEPTED = Acceptance(revision="job-0123456789abcdef")


@dataclass
class Story:
    """A job, its pods and a clock. Events are collected; actions are not carried out."""

    job: TrainingJob = field(default_factory=make_job)
    workers: tuple[WorkerPod, ...] = ()
    now: datetime = NOW
    progress: Progress | None = None
    creation_error: CreationError | None = None
    acceptance: Acceptance = ACCEPTED
    """The answer to a job that starts."""
    progress_interval: timedelta = timedelta(0)
    page_problem: str | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def status(self) -> TrainingJobStatus:
        return self.job.status

    @property
    def phase(self) -> str:
        return str(self.job.status.phase)

    def condition(self, kind: str) -> Condition:
        found = self.status.condition(ConditionType(kind))
        assert found is not None, f"{kind} was never set"
        return found

    def step(self) -> Plan:
        """Plan once, and store the status."""
        observation = Observation(
            self.job,
            self.workers,
            self.now,
            self.progress,
            self.creation_error,
            page_problem=self.page_problem,
            progress_interval=self.progress_interval,
        )
        step = plan(observation)
        if any(isinstance(action, AcceptSpec) for action in step.actions):
            step = plan(replace(observation, acceptance=self.acceptance))
        self.job = self.job.replace(status=step.status)
        self.events += step.events
        return step

    def settle(self) -> Plan:
        """Plan until there is nothing more to record. Return the last plan, which acts."""
        for _ in range(10):
            before = self.status
            step = self.step()
            if step.wake_after != 0:
                return step
            assert step.actions == (), "a decision is recorded before it is acted on"
            assert step.status != before, "reconciling again at once without a change never ends"
        raise AssertionError("ten plans, and still something to record")

    def later(self, seconds: float) -> Self:
        self.now += timedelta(seconds=seconds)
        return self

    def see(self, *workers: WorkerPod) -> Self:
        """Set the pods that exist from now on."""
        self.workers = workers
        return self

    def all(self, state: str, *, attempt: int | None = None, **fields: Any) -> Self:
        """Let all pods of an attempt, by default the current one, exist in this state."""
        replicas = self.job.effective_job.spec.workers.replicas
        number = self.status.attempt if attempt is None else attempt
        return self.see(
            *(make_worker(i, attempt=number, state=state, replicas=replicas, **fields) for i in range(replicas))
        )

    def edit(self, **changes: Any) -> Self:
        """Change the spec: `suspend` or `replicas`."""
        spec = self.job.spec
        if "replicas" in changes:
            spec = spec.replace(workers=spec.workers.replace(replicas=changes.pop("replicas")))
        metadata = self.job.metadata
        newer = metadata.model_copy(update={"generation": metadata.generation + 1})
        self.job = self.job.replace(spec=spec.replace(**changes), metadata=newer)
        return self


def running(**spec: Any) -> Story:
    """Return a job whose workers all run."""
    story = Story(make_job(**spec))
    story.settle()
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    return story
