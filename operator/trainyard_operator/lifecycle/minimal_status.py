"""The status that is stored if the API server refuses the complete one: the decisions, and no measurements."""

from datetime import datetime

from trainyard.resource.status import Condition, ConditionType, Failure, Reason, TrainingJobStatus
from trainyard_operator.pod_input.text import clean_text

_MAX_MESSAGE = 256
_MAX_REFUSAL = 1024
_MEANING = "the API server refuses the complete status; progress, goodput and parts of messages are not up to date"


def minimal_status(stored: TrainingJobStatus, status: TrainingJobStatus, refusal: str) -> TrainingJobStatus:
    """Return a status with the decisions of one that the API server refused, and the condition StatusRefused.

    Args:
        stored: the status as it is stored, which the API server has accepted before.
        status: the status that was refused.
        refusal: why, in the words of the API server.
    """
    conditions = [
        c.replace(message=clean_text(c.message, _MAX_MESSAGE))
        for c in status.conditions
        if c.type != ConditionType.STATUS_REFUSED
    ]
    before = stored.condition(ConditionType.STATUS_REFUSED)
    lasting = before is not None and before.status == "True"
    times = [c.last_transition_time for c in status.conditions]
    refused = Condition(
        type=ConditionType.STATUS_REFUSED,
        status="True",
        reason=Reason.STATUS_REFUSED,
        message=clean_text(f"{_MEANING}: {refusal}", _MAX_REFUSAL),
        last_transition_time=before.last_transition_time if before and lasting else _latest(times),
        observed_generation=status.observed_generation,
    )
    return status.replace(
        conditions=(*conditions, refused),
        progress=stored.progress,
        goodput=stored.goodput,
        last_failure=status.last_failure and _minimal_failure(status.last_failure),
    )


def _latest(times: list[datetime]) -> datetime:
    return max(times, default=datetime.fromisoformat("1970-01-01T00:00:00+00:00"))


def _minimal_failure(failure: Failure) -> Failure:
    """Return what the restart policy and the back-off need to know of a failure."""
    return Failure(attempt=failure.attempt, reason=clean_text(failure.reason, _MAX_MESSAGE), at=failure.at)
