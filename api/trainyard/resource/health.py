"""`spec.health`: when a run that stops making progress is ended, so that it is restarted."""

from typing import Annotated, Literal

from pydantic import Field

from trainyard.base import ApiModel

DEFAULT_STARTUP_TIMEOUT = 1800
"""Default of `spec.health.startupTimeoutSeconds`, in seconds; it also applies to a job without `spec.health`."""
_MAX_SECONDS = 86_400
"""Longest timeout, in seconds: one day."""


class BadStepPolicy(ApiModel):
    """What happens after a bad step: one whose gradient norm is not finite (NaN or Inf) or is a spike."""

    action: Literal["Skip", "Rollback", "Fail"] = "Skip"
    """What happens after a bad step. Skip: the step changes neither parameters nor optimizer state, and training
    continues with the next samples; after `limit` bad steps in a row the attempt fails. Rollback: bad steps are skipped
    as well, but after `limit` in a row all ranks return to the newest checkpoint and continue from there with samples
    that have not been drawn yet; needs spec.checkpoint. Fail: the first bad step fails the attempt. An attempt that
    fails because of bad steps ends with exit code 80 and reason BadSteps, and counts against restartPolicy.maxRestarts.
    Defaults to Skip."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Number of consecutive bad steps after which Skip fails the attempt and Rollback returns to a checkpoint. Defaults
    to 5."""
    spike_factor: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """A step is a spike if its gradient norm exceeds this factor times the median norm of the last 100 good steps.
    Applies once 20 good steps have been made. Without it only steps with a gradient that is not finite are bad."""


class Straggler(ApiModel):
    """Detection of a rank that computes more slowly than the others, which all wait for it in every step."""

    factor: Annotated[float, Field(gt=1, le=100)] = 1.5
    """A rank is a straggler if the same small computation takes it at least this many times as long as the median rank,
    for 15 seconds. Defaults to 1.5."""
    action: Literal["Report", "Replace"] = "Report"
    """What happens with a straggler. Report: an event and the condition Degraded name its rank, pod and node. Replace:
    in addition the group saves a checkpoint and restarts on other nodes; this does not count against
    restartPolicy.maxRestarts and happens at most once per node and at most every ten minutes. Replace needs
    spec.checkpoint. Defaults to Report."""


class Health(ApiModel):
    """When a run of the built-in trainer that stops making progress is ended, so that it is restarted."""

    startup_timeout_seconds: Annotated[int, Field(ge=1, le=_MAX_SECONDS)] = DEFAULT_STARTUP_TIMEOUT
    """Time in seconds from the moment when all workers run until the first step of the attempt must be complete. It
    must cover loading the data, compiling the model and reading a checkpoint. When it has passed, the group restarts
    with reason StartupTimeout, which counts against restartPolicy.maxRestarts. The operator reads steps from the
    metrics page of rank 0: while that cannot be read, the timeout has no effect. Defaults to 1800."""
    hang_timeout_seconds: Annotated[int, Field(ge=1, le=_MAX_SECONDS)] | Literal["auto"] | None = None
    """Time in seconds without a heartbeat of a rank, after its first step, after which the run is considered hung, or
    auto. Ranks write heartbeats many times in each step and evaluation. The pods of a hung run report where each rank
    stands and end with exit code 79; the group restarts with reason Hang, which counts against
    restartPolicy.maxRestarts. auto: 20 times the longest recent interval between two heartbeats in the same phase of a
    step, at least 60; 600 in a phase that the run has not completed yet; and no limit while a checkpoint is written. A
    number applies to all phases, writing of checkpoints included. Defaults to auto."""

    bad_steps: BadStepPolicy = BadStepPolicy()
    """What happens after a step whose gradient is not finite or spikes."""

    straggler: Straggler | None = None
    """Detection of ranks that are slower than the others. Without it nothing is measured."""


class HealthConfig(ApiModel):
    """`spec.health` as the trainer reads it: all defaults filled in."""

    startup_timeout_seconds: int = DEFAULT_STARTUP_TIMEOUT
    """Time in seconds that a rank waits for the others, whose pods may not have started yet."""
    hang_timeout_seconds: int | None = None
    """Time in seconds without a heartbeat after which a rank is considered hung; None: measured by the run (auto)."""
    bad_steps: BadStepPolicy = BadStepPolicy()
    """What happens after a step whose gradient is not finite or spikes."""
    straggler: Straggler | None = None
    """Detection of slow ranks; None: off."""


def health_config(spec: Health | None) -> HealthConfig:
    """Return the trainer's configuration for `spec.health`, with defaults for what is absent."""
    spec = spec or Health()
    timeout = spec.hang_timeout_seconds
    return HealthConfig(
        startup_timeout_seconds=spec.startup_timeout_seconds,
        hang_timeout_seconds=None if timeout == "auto" else timeout,
        bad_steps=spec.bad_steps,
        straggler=spec.straggler,
    )


def startup_timeout(health: Health | None) -> int:
    """Return the startup timeout in seconds; the default for a job without `spec.health`."""
    return health.startup_timeout_seconds if health else DEFAULT_STARTUP_TIMEOUT
