"""`spec.restartPolicy`: what follows the failure of an attempt."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Action = Literal["Restart", "RestartIgnoringLimit", "Fail"]
ExitCode = Annotated[int, Field(ge=1, le=255)]
FailureReason = Annotated[str, Field(min_length=1, max_length=256)]


class Backoff(ApiModel):
    """Waiting time before a restart: initialSeconds x factor^(restarts that count - 1), at most maxSeconds."""

    initial_seconds: Annotated[int, Field(ge=0, le=86_400)] = 1
    """Wait before the first restart, in seconds."""
    max_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """Longest wait, in seconds."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """Growth from one restart to the next."""


class RestartRule(ApiModel):
    """What one kind of failure leads to."""

    on_exit_codes: Annotated[tuple[ExitCode, ...], Field(min_length=1, max_length=64)] | None = None
    """Exit codes of the worker that failed. That of a pod that was evicted, preempted or deleted is not the
    program's; such a failure is known by its reason."""
    on_reasons: Annotated[tuple[FailureReason, ...], Field(min_length=1, max_length=64)] | None = None
    """Reasons as in status.lastFailure.reason: OOMKilled, Evicted, Deleted, WorkerLost, Hang, StartupTimeout, the
    name of a signal (SIGSEGV) or of an exception (ZeroDivisionError), ..."""
    action: Action
    """Restart spends restartPolicy.maxRestarts, RestartIgnoringLimit does not, Fail ends the job at once."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.onExitCodes) != has(self.onReasons)",
            "spec.restartPolicy.rules: each rule has exactly one of onExitCodes and onReasons; add one, or make two "
            "rules of it",
        ),
    )

    def matches(self, reason: str, exit_code: int | None) -> bool:
        """Whether a failure with this reason, and this exit code of the program, is of that kind."""
        return reason in (self.on_reasons or ()) or exit_code in (self.on_exit_codes or ())


class RestartPolicy(ApiModel):
    """What happens when a worker fails. The group always restarts whole, as a new attempt."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Restarts after failures of the program itself. Those after eviction, preemption, the deletion of a pod
    or a change of replicas do not count."""
    backoff: Backoff = Backoff()
    """How long to wait before each restart."""
    in_place: bool | None = None
    """Restart inside the pods where they live on and only processes in them have failed: nothing is scheduled or pulled
    again. Otherwise the group gets new pods. If absent true for the built-in trainer, and false for a program of your
    own (spec.command): there it needs Python 3.8 or newer in the image, as python3, whose first process then is not
    the command but a launcher that starts it."""
    rules: Annotated[
        tuple[RestartRule, ...], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """The first rule that matches a failure decides what follows it. Where none matches, maxRestarts applies."""
