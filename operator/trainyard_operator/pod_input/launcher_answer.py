"""Answers of the launcher in a pod, made fit for the lifecycle: a user's container may answer anything in its place."""

from datetime import UTC, datetime, timedelta
from typing import Final

from trainyard.protocol.launcher_state import ExitInfo, PodState
from trainyard_operator.pod_input.text import bounded_message

MAX_ANSWER_BYTES: Final = 32_768
"""Longest answer that is read: a termination message of 4 KiB with every character escaped, and the rest."""
MAX_ATTEMPTS_AHEAD: Final = 16
"""How far the attempt in a pod may be ahead of the one in the status: the status may be restored from a backup."""
MAX_AGE: Final = timedelta(hours=1)
"""Oldest end of an attempt: a launcher whose ranks have failed awaits a restart for one minute."""
UNKNOWN_EXIT_CODE: Final = 255
"""Exit code in place of one that no process can have."""


def parse_launcher_answer(text: str, *, attempt: int, now: datetime) -> PodState:
    """Return the state that a launcher has answered, with every value within its bounds.

    Args:
        text: the answer, JSON of a `PodState`.
        attempt: attempt of the job's status.
        now: time of the answer.

    Raises:
        ValueError: the answer is no state of a launcher, or its attempt was never requested.
    """
    state = PodState.model_validate_json(text)
    if state.attempt > attempt + MAX_ATTEMPTS_AHEAD:
        raise ValueError(f"it runs attempt {state.attempt}, but the job is in attempt {attempt}")
    if state.exit_info is None:
        return state
    return state.replace(exit_info=_bounded(state.exit_info, now))


def _bounded(end: ExitInfo, now: datetime) -> ExitInfo:
    """Return the end of an attempt with an exit code of one byte, a short message, and a time in the last hour."""
    at = end.at if end.at.tzinfo is not None else end.at.replace(tzinfo=UTC)
    return ExitInfo(
        exit_code=end.exit_code if 0 <= end.exit_code <= UNKNOWN_EXIT_CODE else UNKNOWN_EXIT_CODE,
        message=bounded_message(end.message),
        at=max(now - MAX_AGE, min(at, now)),
    )
