"""One job for each alert scenario, with the real metrics of operator and worker for Prometheus."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from prometheus_client import CollectorRegistry

from tests.builders import make_job, trainer_spec
from tests.support.kubelet import zulu
from tests.support.run_config import make_config
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.time import utc_now
from trainyard_operator.controller.cache import Cache
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.observer import Start
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.runtime.world import World

NAMESPACE = "ml"
TICK = 0.1
"""Seconds between two steps of a healthy job."""


class AlertScenario:
    """A healthy job: it runs, does steps, and saves every two seconds. Subclasses override what differs."""

    alert: ClassVar[str | None] = None
    extra: ClassVar[Mapping[str, str]] = {}
    """Labels of the alert besides those of the job."""

    def __init__(self, cache: Cache) -> None:
        self.name = type(self).__name__.lower()
        self._cache, self._version = cache, 0
        self.loss, self.speed = 3.0, 1000.0
        self.steps, self.saves = True, True
        self.stragglers: dict[int, float] = {}
        self.begin()
        self.set_running()

    def begin(self, step: int = 0, attempt: int = 1) -> None:
        """Start a new attempt, in a new process."""
        config = make_config().replace(namespace=NAMESPACE, job=self.name)
        self.metrics = MetricsExporter(config, World(0, 0, 1, 1, torch.device("cpu")), attempt)
        self.page: CollectorRegistry | None = self.metrics.registry
        self.step, self._saved = step, step
        if step:
            self.metrics.checkpoint_resumed(step, 0)
        self.metrics.begin(Start(step, step * 8, step * 8 * 16, 100_000, batch=8, samples=1000))

    def set_conditions(self, *conditions: C, suspend: bool = False, **status: Any) -> None:
        """Update the operator's cache: these conditions are true, and all others are false."""
        now = zulu(utc_now())
        statuses = [
            {"type": kind, "status": str(kind in conditions), "reason": "Test", "lastTransitionTime": now} for kind in C
        ]
        self._version += 1
        self.job: TrainingJob = make_job(
            self.name,
            uid=self.name,
            version=self._version,
            namespace=NAMESPACE,
            trainer=trainer_spec(),
            suspend=suspend,
            status={"conditions": statuses, **status},
        )
        self._cache.put_job(self.job)

    def set_running(self, **status: Any) -> None:
        """Set the conditions of a job that does steps."""
        self.set_conditions(C.CREATED, C.RUNNING, C.PROGRESSING, **status)

    def tick(self, age: float) -> None:
        """Do one step, and report it as the trainer does."""
        if not self.steps or self.page is None:
            return
        self.step += 1
        self.metrics.after_step(self.step)
        self.metrics.spent({"passes": TICK})
        figures = {"step": self.step, "total_steps": 100_000, "learning_rate": 0.1, "grad_norm": 1.0, "steps": 10}
        speed = {"tokens_per_second": self.speed, "samples_per_second": self.speed / 16, "seconds": 1.0}
        self.metrics.reported(StepReport(loss=self.loss, stragglers=self.stragglers, **figures, **speed))  # type: ignore[arg-type]
        if self.saves and self.step - self._saved >= 2 / TICK:
            self._saved = self.step
            self.metrics.checkpoint_saved(self.step, 0.1, 1000)

    def break_down(self) -> None:
        """Cause the problem of the scenario."""

    def later(self, seconds: float) -> None:
        """Continue the scenario, some seconds after the problem began."""

    def recover(self) -> None:
        """Remove the problem."""


class Healthy(AlertScenario):
    pass


class Stalled(AlertScenario):
    alert = "TrainyardJobStalled"

    def break_down(self) -> None:
        self.steps = False

    def recover(self) -> None:
        self.steps = True


class NonFinite(AlertScenario):
    alert = "TrainyardNonFiniteSteps"

    def break_down(self) -> None:
        for _ in range(4):
            self.metrics.skipped(self.step, math.nan)


class Diverging(AlertScenario):
    alert = "TrainyardLossDiverging"

    def break_down(self) -> None:
        self.loss = 8.0

    def recover(self) -> None:
        self.loss = 3.0


class Straggler(AlertScenario):
    alert = "TrainyardStraggler"
    extra: ClassVar[Mapping[str, str]] = {"rank": "3"}

    def break_down(self) -> None:
        self.stragglers = {3: 2.5}

    def recover(self) -> None:
        self.stragglers = {}


class Storm(AlertScenario):
    alert = "TrainyardRestartStorm"

    def break_down(self) -> None:
        failure = {"attempt": 1, "reason": "OOMKilled", "at": zulu(utc_now())}
        self.set_running(restarts=3, restartsCounted=2, lastFailure=failure)

    def recover(self) -> None:
        self.page = None
        self.set_conditions(C.CREATED, C.SUCCEEDED, restarts=3, restartsCounted=2)


class Slow(AlertScenario):
    alert = "TrainyardThroughputDropped"

    def break_down(self) -> None:
        self.speed = 300.0

    def recover(self) -> None:
        self.speed = 1000.0


class Pending(AlertScenario):
    alert = "TrainyardJobPendingTooLong"

    def set_running(self, **status: Any) -> None:
        self.page = None
        self.set_conditions(C.CREATED)

    def recover(self) -> None:
        super().set_running()


class Stale(AlertScenario):
    alert = "TrainyardCheckpointStale"

    def break_down(self) -> None:
        self.saves = False

    def recover(self) -> None:
        self.saves = True


class Unsaved(AlertScenario):
    alert = "TrainyardCheckpointFailing"

    def break_down(self) -> None:
        self.metrics.checkpoint_failed(self.step)


class Failed(AlertScenario):
    alert = "TrainyardJobFailed"

    def break_down(self) -> None:
        self.page = None
        self.set_conditions(C.CREATED, C.FAILED)

    def recover(self) -> None:
        self._cache.remove_job((NAMESPACE, self.name), self.job.metadata.uid)


class Suspended(AlertScenario):
    def break_down(self) -> None:
        self.page = None
        self.set_conditions(C.CREATED, C.SUSPENDED, suspend=True)


class Finished(AlertScenario):
    def break_down(self) -> None:
        self.page = None
        self.set_conditions(C.CREATED, C.SUCCEEDED)


class Restarted(AlertScenario):
    """A job that resumes from its checkpoint, with a startup longer than any step may take."""

    STARTUP = 20.0
    _stage = ""

    def break_down(self) -> None:
        self.page = None
        self.set_conditions(C.CREATED, C.RESTARTING, restarts=1, restartsCounted=1)

    def later(self, seconds: float) -> None:
        if seconds > 2 and not self._stage:
            self._stage, self.steps = "starts", False
            self.begin(self._saved, attempt=2)
            self.set_conditions(C.CREATED, C.RUNNING, restarts=1, restartsCounted=1)
        if seconds > self.STARTUP and self._stage == "starts":
            self._stage, self.steps = "steps", True
            self.set_running(restarts=1, restartsCounted=1)


SCENARIOS = tuple(AlertScenario.__subclasses__())
"""All scenarios: the direct subclasses of `AlertScenario`."""
