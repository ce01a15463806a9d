"""The restart policy: whether a failure leads to a restart, whether that counts, and how long it waits."""

from dataclasses import dataclass

from trainyard.resource.restart import Backoff, RestartPolicy
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """The consequence of a failure, with its reason."""

    fail_job: bool
    """The job fails; otherwise the group is restarted."""
    counts: bool
    """The restart counts against restartPolicy.maxRestarts."""
    reason: Reason
    message: str


def apply_restart_policy(diagnosis: Diagnosis, policy: RestartPolicy, restarts_counted: int) -> RestartDecision:
    """Decide what follows a failure.

    Args:
        diagnosis: the failure.
        policy: the job's spec.restartPolicy.
        restarts_counted: restarts so far that count against maxRestarts.
    """
    failure, message = diagnosis.failure, failure_message(diagnosis)
    # The exit code of a pod that the cluster removed shows how it was killed, not what the program did.
    exit_code = failure.exit_code if diagnosis.counts else None
    matching = (n for n, rule in enumerate(policy.rules) if rule.matches(failure.reason, exit_code))
    number, counts = next(matching, None), diagnosis.counts
    # The first of the user's rules that matches decides, before any default.
    if number is not None:
        action = policy.rules[number].action
        message += f"; restartPolicy.rules[{number}] says {action}"
        if action == "Fail":
            return RestartDecision(True, False, Reason.RESTART_RULE, message)
        counts = action == "Restart"
    # Without a rule, an invalid configuration fails the job: every restart would end the same way.
    elif diagnosis.unrecoverable:
        return RestartDecision(True, False, Reason.INVALID_CONFIG, failure.message)
    # A restart that does not count is always allowed, any other one below the limit.
    if not counts or restarts_counted < policy.max_restarts:
        return RestartDecision(False, counts, _reason(diagnosis), message)
    # The limit is reached.
    if policy.max_restarts:
        message += f"; restartPolicy.maxRestarts is {policy.max_restarts}"
        return RestartDecision(True, counts, Reason.RESTART_LIMIT, message)
    # With maxRestarts 0 the first failure ends the job, so the failure itself is the reason.
    return RestartDecision(True, counts, _reason(diagnosis), message)


def _reason(diagnosis: Diagnosis) -> Reason:
    if diagnosis.failure.reason == Reason.STARTUP_TIMEOUT:
        return Reason.STARTUP_TIMEOUT
    return Reason.WORKER_FAILED if diagnosis.counts else Reason.DISRUPTED


def failure_message(diagnosis: Diagnosis) -> str:
    """Return one sentence about a failure: attempt, pod, rank, node, exit code, step, reason, and last log line."""
    failure = diagnosis.failure
    subject = f"pod {failure.pod}" if failure.pod else "the group"
    facts = {
        "container": failure.container,
        "rank": failure.rank,
        "node": failure.node,
        "exit code": failure.exit_code,
        "step": failure.step,
    }
    detail = ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))
    message = f"attempt {failure.attempt}: {subject} {'failed' if diagnosis.counts else 'was lost'}"
    message += f" ({detail})" if detail else ""
    message += f": {failure.reason}"
    return f"{message}: {failure.message}" if failure.message else message


def backoff_seconds(policy: Backoff, restarts_counted: int) -> float:
    """Return the seconds to wait before a restart; `restarts_counted` includes this one if it counts."""
    growth: float = policy.factor ** min(max(0, restarts_counted - 1), 64)
    return min(policy.max_seconds, policy.initial_seconds * growth)
