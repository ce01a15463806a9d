"""`spec.restartPolicy`: what happens after the failure of an attempt."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Action = Literal["Restart", "RestartIgnoringLimit", "Fail"]
"""Consequence of a failure; see `RestartRule.action`."""
ExitCode = Annotated[int, Field(ge=1, le=255)]
FailureReason = Annotated[str, Field(min_length=1, max_length=256)]


class Backoff(ApiModel):
    """Exponential waiting time before a restart, whatever caused it: initialSeconds x factor^(n - 1) seconds, at most
    maxSeconds, before restart n in a row without progress. Up to a quarter of it is left out, differently for each job
    and attempt, so that jobs which failed together do not restart together.

    An attempt that makes a step which no attempt has made before does not add to n. A good run, which makes new steps
    and lasts resetSeconds, sets n back to 1. Of your own program without spec.metrics no steps are known: only the
    duration counts.
    """

    initial_seconds: Annotated[int, Field(ge=0, le=86_400)] = 1
    """Waiting time before the first restart, in seconds. From the fourth restart in a row without progress on, the
    operator waits at least 1, 2, 4, ... 60 seconds. Defaults to 1."""
    max_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """Longest waiting time, in seconds. Defaults to 300."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """Factor by which the waiting time grows from one restart to the next. Defaults to 2."""
    reset_seconds: Annotated[int, Field(ge=0, le=86_400)] = 600
    """How long all workers must have run, in seconds, for a good run. It resets the waiting time and the count of
    disruptions (maxDisruptions). Defaults to 600."""


class RestartRule(ApiModel):
    """Consequence of one kind of failure. Each rule has exactly one of onExitCodes and onReasons."""

    on_exit_codes: Annotated[tuple[ExitCode, ...], Field(min_length=1, max_length=64)] | None = None
    """Exit codes of the failed container, from 1 to 255, that this rule matches. Pods that were evicted, preempted or
    deleted never match by exit code, since it does not come from the program; use onReasons for them."""
    on_reasons: Annotated[tuple[FailureReason, ...], Field(min_length=1, max_length=64)] | None = None
    """Failure reasons that this rule matches, as in status.lastFailure.reason: OOMKilled, Evicted, OutOfcpu,
    StorageLimitExceeded, Deleted, WorkerLost, InitContainerFailed, StartError, InvalidImageName, FinalCheckpointFailed,
    GPUOutOfMemory, GPUFault, CUDAError, NCCLError, Hang, StartupTimeout, BadSteps, Error, the name of a signal
    (SIGSEGV) or of an exception (ZeroDivisionError). The name of an exception is known from the built-in trainer; of a
    program of your own it is known if the end of its log names it, otherwise the reason is Error."""
    action: Action
    """What happens after a failure that this rule matches. Restart: the group restarts, which counts against
    restartPolicy.maxRestarts. RestartIgnoringLimit: the group restarts, which counts against no limit, so that it may
    do so without end, with the waiting time of restartPolicy.backoff. Fail: the job fails at once."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.onExitCodes) != has(self.onReasons)",
            "spec.restartPolicy.rules: each rule must have exactly one of onExitCodes and onReasons; add one, or split "
            "it into two rules",
        ),
    )

    def matches(self, reason: str, exit_code: int | None) -> bool:
        """Whether the rule matches a failure, given its reason and the exit code of the program, if there is one."""
        return reason in (self.on_reasons or ()) or exit_code in (self.on_exit_codes or ())


class RestartPolicy(ApiModel):
    """What happens when a worker fails. All workers restart together, as a new attempt."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Number of restarts after failures of the program; the next such failure fails the job with reason
    RestartLimitReached. Restarts after eviction, preemption, deletion of a pod, loss of a node or a change of
    workers.replicas do not count, unless a rule says otherwise. Defaults to 3."""
    max_disruptions: Annotated[int, Field(ge=0, le=1_000_000)] = 300
    """Number of restarts after disruptions without a good run in between (backoff.resetSeconds); the next disruption
    fails the job with reason DisruptionLimitReached. A disruption takes a pod without a failure of the program:
    eviction, preemption, deletion, loss of a node, refusal by a node. Defaults to 300, which with the default backoff
    is about a day."""
    backoff: Backoff = Backoff()
    """Waiting time before each restart."""
    in_place: bool | None = None
    """Whether a new attempt may start inside the existing pods if only processes failed: nothing is scheduled or pulled
    again. Where that is impossible, for example after the loss of a pod, the group gets new pods. Defaults to true with
    trainer and to false with command. With command it needs Python 3.8 or newer in the image, as python3: the first
    process of each pod is then a launcher, which starts your command."""
    rules: Annotated[
        tuple[RestartRule, ...], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """Rules for particular failures. The first rule that matches a failure decides its consequence; if none matches,
    the group restarts, which counts against maxRestarts for failures of the program only."""
