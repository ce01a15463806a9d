"""Saves that are under way, and how they end."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from trainyard_trainer.checkpoint.storage import FAILURES


@dataclass(frozen=True)
class PendingSave:
    """A save that is under way."""

    step: int
    began: float
    """Monotonic time."""
    result: Future[None]


def finished(action: Callable[[], object]) -> Future[None]:
    """Call a function, and return its outcome as a future that is done; only FAILURES become its exception."""
    future: Future[None] = Future()
    try:
        action()
    except FAILURES as error:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


def first_line(error: BaseException) -> str:
    """Return class and first line of an error, or of its cause: CheckpointException holds one for each failed rank."""
    failures = getattr(error, "failures", {})
    cause = next(iter(failures.values()))[0] if failures else error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
