"""`spec.restartPolicy`: what happens after the failure of an attempt."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Action = Literal["Restart", "RestartIgnoringLimit", "Fail"]
"""Consequence of a failure; see `RestartRule.action`."""
ExitCode = Annotated[int, Field(ge=1, le=255)]
FailureReason = Annotated[str, Field(min_length=1, max_length=256)]


class Backoff(ApiModel):
    """Exponential waiting time before restart n of those that count against maxRestarts: initialSeconds x factor^(n -
    1) seconds, at most maxSeconds.
    """

    initial_seconds: Annotated[int, Field(ge=0, le=86_400)] = 1
    """Waiting time before the first restart, in seconds. Defaults to 1."""
    max_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """Longest waiting time, in seconds. Defaults to 300."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """Factor by which the waiting time grows from one restart to the next. Defaults to 2."""


class RestartRule(ApiModel):
    """Consequence of one kind of failure. Each rule has exactly one of onExitCodes and onReasons."""

    on_exit_codes: Annotated[tuple[ExitCode, ...], Field(min_length=1, max_length=64)] | None = None
    """Exit codes of the failed worker, from 1 to 255, that this rule matches. Pods that were evicted, preempted or
    deleted never match by exit code, since it does not come from the program; use onReasons for them."""
    on_reasons: Annotated[tuple[FailureReason, ...], Field(min_length=1, max_length=64)] | None = None
    """Failure reasons that this rule matches, as in status.lastFailure.reason: OOMKilled, Evicted, Deleted, WorkerLost,
    Hang, StartupTimeout, BadSteps, Error, the name of a signal (SIGSEGV), or with the built-in trainer the name of an
    exception (ZeroDivisionError). A program of your own that ends with an exception has the reason Error."""
    action: Action
    """What happens after a failure that this rule matches. Restart: the group restarts, which counts against
    restartPolicy.maxRestarts. RestartIgnoringLimit: the group restarts, which does not count, so that it may do so
    without end. Fail: the job fails at once."""

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
