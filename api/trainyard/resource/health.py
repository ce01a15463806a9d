"""`spec.health`: when a run that does not get on is ended, so that it is restarted."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

DEFAULT_STARTUP_TIMEOUT = 1800
_LONGEST = 86_400


class BadStepPolicy(ApiModel):
    """What follows a step whose gradient is no use: its norm is not a finite number, or it is a spike."""

    action: Literal["Skip", "Rollback", "Fail"] = "Skip"
    """Skip: such a step changes neither parameters nor optimizer, and the run goes on with the next samples; after
    `limit` of them in a row the attempt fails. Rollback: the same, but then all ranks go back to the newest checkpoint,
    and on from there with samples that have not been drawn yet. Fail: the attempt fails at once. An attempt that fails
    so ends with exit code 80 and the reason BadSteps, and counts against restartPolicy.maxRestarts."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Bad steps in a row that are only skipped."""
    spike_factor: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """A step is a spike if the norm of its gradient is more than this times the median of the last 100 good steps;
    judged from the 20th on. Absent: only norms that are not finite count."""


class Straggler(ApiModel):
    """What follows if a rank computes slower than the others, which all wait for it in every step."""

    factor: Annotated[float, Field(gt=1, le=100)] = 1.5
    """A rank is a straggler if the same small computation takes it this many times as long as the median rank, for
    a quarter of a minute."""
    action: Literal["Report", "Replace"] = "Report"
    """Report: an event, and the condition Degraded with rank, pod and node. Replace: besides, the group saves, and
    starts anew on other nodes; that spends no restart, and is done at most once for each node and every ten minutes."""


class Health(ApiModel):
    """When a run that does not get on is ended, so that it is restarted."""

    startup_timeout_seconds: Annotated[int, Field(ge=1, le=_LONGEST)] = DEFAULT_STARTUP_TIMEOUT
    """Seconds from the moment when all workers run until the first step of the attempt must be done; then the group
    restarts, which counts against restartPolicy.maxRestarts. It must have time for loading the data, compiling the model and
    reading a checkpoint. Judged by rank 0's metrics page alone: while it cannot be read, nothing is done."""
    hang_timeout_seconds: Annotated[
        Annotated[int, Field(ge=1, le=_LONGEST)] | Literal["auto"] | None,
        Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
    ] = None
    """Seconds without a sign of life from a rank of the built-in trainer, after its first step, that are taken for a
    hang: the pods then say where each rank is, end with exit code 79, and the group restarts, which counts against
    restartPolicy.maxRestarts. A rank gives such a sign many times in each step and evaluation. auto (the default): 20 times
    the longest time between two of them that the run has needed lately in the same phase of a step, at least 60;
    600 in a phase that it has not passed yet; and the writing of a checkpoint takes as long as the storage needs. A
    number is for every phase, the writing of a checkpoint too."""

    bad_steps: BadStepPolicy = BadStepPolicy()
    """What follows a step of the built-in trainer whose gradient is not finite, or too large to be true."""

    straggler: Straggler | None = None
    """What follows if a rank of the built-in trainer is slow. Absent: nothing is measured."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.hangTimeoutSeconds) || (type(self.hangTimeoutSeconds) == int ?"
            f" (self.hangTimeoutSeconds >= 1 && self.hangTimeoutSeconds <= {_LONGEST})"
            " : self.hangTimeoutSeconds == 'auto')",
            f"spec.health.hangTimeoutSeconds: must be auto or a number from 1 to {_LONGEST}",
        ),
    )


class HealthConfig(ApiModel):
    """The same for the trainer, complete."""

    hang_timeout_seconds: int | None = None
    """None: as the run itself shows (auto)."""
    bad_steps: BadStepPolicy = BadStepPolicy()
    straggler: Straggler | None = None


def health_config(spec: Health | None) -> HealthConfig:
    """Defaults filled in."""
    spec = spec or Health()
    given = spec.hang_timeout_seconds
    return HealthConfig(
        hang_timeout_seconds=None if given == "auto" else given,
        bad_steps=spec.bad_steps,
        straggler=spec.straggler,
    )


def startup_timeout(health: Health | None) -> int:
    """Seconds; the default for a job without `spec.health`."""
    return health.startup_timeout_seconds if health else DEFAULT_STARTUP_TIMEOUT
