"""The summary conditions, which follow from the others: Finished, and Ready, Reconciling and Stalled of kstatus.

`kubectl wait --for=condition=Finished` waits for either end of a job. Flux and Helm evaluate a resource by kstatus
(https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus): it is in progress if its
status.observedGeneration is not the newest or Reconciling is True, has failed if Stalled is True, and otherwise Ready
decides. As for a Job, a suspended job is ready: it is as its spec says.
"""

from datetime import datetime

from trainyard.resource.status import Condition, Phase, TrainingJobStatus
from trainyard.resource.status import ConditionType as C
from trainyard_operator.lifecycle.condition_list import with_condition
from trainyard_operator.pod_input.text import clean_text

MAX_MESSAGE = 1024
"""Characters of the message of a summary condition: it repeats that of another condition."""

_READY = (Phase.RUNNING, Phase.SUSPENDED, Phase.SUCCEEDED)
_RECONCILING = (Phase.PENDING, Phase.RESTARTING, Phase.SUSPENDING)
_CAUSES = {
    Phase.SUCCEEDED: C.SUCCEEDED,
    Phase.FAILED: C.FAILED,
    Phase.SUSPENDED: C.SUSPENDED,
    Phase.SUSPENDING: C.SUSPENDED,
}
"""Condition that says why a job is in a phase; in any other phase it is Running."""


def summarize(status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Return the status to write, with its summary conditions up to date.

    Args:
        status: the status, with its phase and all other conditions.
        now: the current time.
    """
    # A finished job never changes again.
    if status.is_true(C.FINISHED) or status.phase is None:
        return status
    cause = status.condition(_CAUSES.get(status.phase, C.RUNNING))
    # Nothing is known about the job yet.
    if cause is None:
        return status
    conditions = _with(status.conditions, C.READY, status.phase in _READY, cause, now)
    # The others are set once they hold, since tools read an absent one as False.
    reconciling, failed = status.phase in _RECONCILING, status.phase is Phase.FAILED
    if reconciling or status.condition(C.RECONCILING):
        conditions = _with(conditions, C.RECONCILING, reconciling, cause, now)
    if failed:
        conditions = _with(conditions, C.STALLED, True, cause, now)
    if failed or status.phase is Phase.SUCCEEDED:
        conditions = _with(conditions, C.FINISHED, True, cause, now)
    return status.replace(conditions=conditions)


def _with(
    conditions: tuple[Condition, ...], kind: C, holds: bool, cause: Condition, now: datetime
) -> tuple[Condition, ...]:
    """Return conditions with one that has the reason and the message of its cause."""
    condition = cause.replace(
        type=kind.value,
        status="True" if holds else "False",
        message=clean_text(cause.message, MAX_MESSAGE),
        last_transition_time=now.replace(microsecond=0),
    )
    return with_condition(conditions, condition)
