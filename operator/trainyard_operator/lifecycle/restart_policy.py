"""The restart policy: whether a failure leads to a restart, whether that counts, and how long it waits."""

from dataclasses import dataclass

from trainyard.resource.restart import RestartPolicy
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """The consequence of a failure, with its reason."""

    fail_job: bool
    """The job fails; otherwise the group is restarted."""
    counts: bool
    """The restart counts against restartPolicy.maxRestarts."""
    disruption: bool
    """The restart counts against restartPolicy.maxDisruptions."""
    reason: Reason
    message: str


def apply_restart_policy(
    diagnosis: Diagnosis, policy: RestartPolicy, restarts_counted: int, disruptions: int
) -> RestartDecision:
    """Decide what follows a failure.

    Args:
        diagnosis: the failure.
        policy: the job's spec.restartPolicy.
        restarts_counted: restarts so far that count against maxRestarts.
        disruptions: restarts so far that count against maxDisruptions.
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
            return RestartDecision(True, False, False, Reason.RESTART_RULE, message)
        counts = action == "Restart"
        # The user wants restarts without limit.
        if not counts:
            return RestartDecision(False, False, False, _reason(diagnosis), message)
    # Without a rule, a failure that every restart would repeat fails the job.
    elif diagnosis.unrecoverable:
        return _unrecoverable(diagnosis, message)
    # A disruption: the restart is allowed below the limit of disruptions.
    if not counts:
        if disruptions < policy.max_disruptions:
            return RestartDecision(False, False, True, _reason(diagnosis), message)
        message += f"; restartPolicy.maxDisruptions is {policy.max_disruptions}"
        return RestartDecision(True, False, True, Reason.DISRUPTION_LIMIT, message)
    # A failure of the program: the restart is allowed below the limit of restarts.
    if restarts_counted < policy.max_restarts:
        return RestartDecision(False, True, False, _reason(diagnosis), message)
    # The limit is reached.
    if policy.max_restarts:
        message += f"; restartPolicy.maxRestarts is {policy.max_restarts}"
        return RestartDecision(True, True, False, Reason.RESTART_LIMIT, message)
    # With maxRestarts 0 the first failure ends the job, so the failure itself is the reason.
    return RestartDecision(True, True, False, _reason(diagnosis), message)


def _unrecoverable(diagnosis: Diagnosis, message: str) -> RestartDecision:
    """Return the decision that fails the job at once."""
    match diagnosis.failure.reason:
        # The configuration is at fault, and not a pod: its message says all.
        case Reason.INVALID_CONFIG:
            return RestartDecision(True, False, False, Reason.INVALID_CONFIG, diagnosis.failure.message)
        case Reason.FINAL_CHECKPOINT_FAILED:
            return RestartDecision(True, False, False, Reason.FINAL_CHECKPOINT_FAILED, message)
        # The second attempt in a row ran out of memory before it made a new step.
        case Reason.GPU_OUT_OF_MEMORY:
            message += "; so did the attempt before, and neither made a new step"
            return RestartDecision(True, False, False, Reason.GPU_OUT_OF_MEMORY, message)
        case _:
            return RestartDecision(True, False, False, Reason.CANNOT_START, message)


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
    failed = diagnosis.counts or diagnosis.secondary_since is not None or diagnosis.gpu_fault is not None
    message = f"attempt {failure.attempt}: {subject} {'failed' if failed else 'was lost'}"
    message += f" ({detail})" if detail else ""
    message += f": {failure.reason}"
    return f"{message}: {failure.message}" if failure.message else message
