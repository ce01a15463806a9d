"""The economy of restarts: how long the next attempt waits, and when a good run resets what earlier failures added."""

import hashlib
from datetime import timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.restart import Backoff
from trainyard.resource.status import Activity, ConditionType
from trainyard_operator.lifecycle.startup_timeout import has_stepped
from trainyard_operator.lifecycle.status_builder import StatusBuilder

JITTER = 0.25
"""Largest part of the waiting time that is left out."""
QUICK_RESTARTS = 3
"""Restarts in a row without progress that need not wait at all, if the policy says so."""
LONGEST_LEAST_WAIT = 60.0
"""The least wait, in seconds, of a job that restarts again and again without progress."""


def note_failure(builder: StatusBuilder, progress: Progress | None) -> None:
    """Add a failed attempt to the restarts without progress, or reset them and the disruptions after a good run.

    Args:
        builder: the status, with the failed attempt as the current one.
        progress: its newest progress, if any is known.
    """
    new_steps, steps_are_known = _made_new_steps(builder, progress), _reports_steps(builder)
    # A good run: it lasted, and made new steps as far as that is known.
    if _lasted(builder) and (new_steps or not steps_are_known):
        builder.restarts_without_progress = 1
        builder.disruptions = 0
    # It made new steps, but failed soon: the waiting time stays as it is.
    elif new_steps:
        builder.restarts_without_progress = max(1, builder.restarts_without_progress)
    # It brought no new step.
    else:
        builder.restarts_without_progress += 1


def backoff(builder: StatusBuilder, attempt: int) -> float:
    """Return the seconds that an attempt waits after the failure before it."""
    policy = builder.effective_job.spec.restart_policy.backoff
    share = uniform(f"{builder.effective_job.metadata.uid}/{attempt}")
    return backoff_seconds(policy, builder.restarts_without_progress, share)


def backoff_seconds(policy: Backoff, restarts: int, share: float = 0.0) -> float:
    """Return the seconds to wait before a restart.

    Whatever the policy says, a job does not restart at full speed for ever: after `QUICK_RESTARTS` it waits at least
    1 s, then 2 s, 4 s, ... so that it does not wear out the API server.

    Args:
        policy: the job's spec.restartPolicy.backoff.
        restarts: number of restarts in a row without progress, including this one.
        share: how much of the jitter applies, from 0 (the longest wait) to 1.
    """
    growth: float = policy.factor ** min(max(0, restarts - 1), 64)
    wait = min(policy.max_seconds, policy.initial_seconds * growth) * (1 - JITTER * share)
    least = min(LONGEST_LEAST_WAIT, 2.0 ** min(restarts - QUICK_RESTARTS - 1, 64)) if restarts > QUICK_RESTARTS else 0.0
    return max(wait, least)


def _reports_steps(builder: StatusBuilder) -> bool:
    return builder.effective_job.spec.metrics_endpoint is not None


def _made_new_steps(builder: StatusBuilder, progress: Progress | None) -> bool:
    """Return whether the attempt is known to have made steps that no attempt has made before."""
    goodput = builder.goodput
    if not _reports_steps(builder):
        return False
    if goodput is not None and goodput.activity is Activity.PRODUCTIVE:
        return True
    highest = goodput.highest_step if goodput is not None else 0
    return has_stepped(progress, builder.attempt) and progress is not None and progress.step > highest


def _lasted(builder: StatusBuilder) -> bool:
    """Return whether all workers of the attempt have run for as long as a good run needs."""
    running = builder.condition(ConditionType.RUNNING)
    if running is None or running.status != "True":
        return False
    needed = timedelta(seconds=builder.effective_job.spec.restart_policy.backoff.reset_seconds)
    return builder.now - running.last_transition_time >= needed


def uniform(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text only, evenly spread over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
