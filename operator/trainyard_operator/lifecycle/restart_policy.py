"""What follows a failure: a restart that counts, one that does not, or the end. And how long a restart waits."""

from dataclasses import dataclass

from trainyard.resource.restart import Backoff, RestartPolicy
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows a failure, and why."""

    fails: bool
    """The job ends; else the group is restarted."""
    counts: bool
    """The restart spends restartPolicy.maxRestarts."""
    reason: Reason
    message: str


def judge(found: Diagnosis, policy: RestartPolicy, spent: int) -> Verdict:
    """Decide on a failure. The user's rules come first, then what no restart can help, then the limit.

    Args:
        found: the failure.
        policy: what the user has said of failures.
        spent: restarts so far that count.
    """
    failure, story = found.failure, tell(found)
    # The exit code of a pod that was taken away is how it was killed, and says nothing about the program.
    code = failure.exit_code if found.counts else None
    number = next((n for n, rule in enumerate(policy.rules) if rule.matches(failure.reason, code)), None)
    counts = found.counts
    if number is not None:
        action = policy.rules[number].action
        story += f"; restartPolicy.rules[{number}] says {action}"
        if action == "Fail":
            return Verdict(True, False, Reason.RESTART_RULE, story)
        counts = action == "Restart"
    elif found.hopeless:
        return Verdict(True, False, Reason.INVALID_CONFIG, failure.message)
    if not counts or spent < policy.max_restarts:
        return Verdict(False, counts, _reason(found), story)
    if policy.max_restarts:
        return Verdict(
            True, counts, Reason.RESTART_LIMIT, f"{story}; restartPolicy.maxRestarts is {policy.max_restarts}"
        )
    return Verdict(True, counts, _reason(found), story)


def _reason(found: Diagnosis) -> Reason:
    if found.failure.reason == Reason.STARTUP_TIMEOUT:
        return Reason.STARTUP_TIMEOUT
    return Reason.WORKER_FAILED if found.counts else Reason.DISRUPTED


def tell(found: Diagnosis) -> str:
    """One sentence on a failure: pod, rank, node, exit code, reason, last line."""
    f = found.failure
    who = f"pod {f.pod}" if f.pod else "the group"
    facts = [f"rank {f.rank}" if f.rank is not None else "", f"node {f.node}" if f.node else ""]
    facts.append(f"exit code {f.exit_code}" if f.exit_code is not None else "")
    facts.append(f"step {f.step}" if f.step is not None else "")
    detail = ", ".join(x for x in facts if x)
    story = f"attempt {f.attempt}: {who} {'failed' if found.counts else 'was lost'}"
    story += f" ({detail})" if detail else ""
    story += f": {f.reason}"
    return f"{story}: {f.message}" if f.message else story


def backoff(policy: Backoff, restarts: int) -> float:
    """Seconds to wait before a restart, given how many count so far, this one included."""
    growth: float = policy.factor ** min(max(0, restarts - 1), 64)
    return min(policy.max_seconds, policy.initial_seconds * growth)
