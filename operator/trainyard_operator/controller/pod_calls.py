"""How requests to pods are spread, so that pods that do not answer cost only their own jobs."""

import asyncio
from dataclasses import dataclass
from typing import Final

from trainyard_operator.controller.backoff import doubled

MAX_WAIT: Final = 60.0
"""Seconds between two requests to a pod that has not answered for long."""
SILENT_AFTER: Final = 2
"""Queries in a row without an answer after which a pod counts as silent, and is called less and less often."""
REPORTED_AFTER: Final = 6
"""Queries in a row without an answer after which the job reports it: with waits of 1 s, 2 s, 4 s, ... after about a
minute, so that a program that is still starting is not reported."""


@dataclass(slots=True)
class CallSchedule:
    """When one pod is to be called next."""

    uid: str
    """UID of the pod: another pod of the same name has answered nothing yet."""
    due: float = 0.0
    """Time of the event loop."""
    failures: int = 0
    """Requests without an answer that can be used, since the last one with such an answer."""
    calls: int = 0
    """Requests without news, since the last one with news."""
    version: int = -1
    """Resource version of the pod at the last request."""
    in_flight: bool = False
    """Whether a query is in flight."""
    requested: bool = False
    """Whether a request to start an attempt, or to exit, is in flight."""
    request: str = ""
    """What was last requested."""
    requests: int = 0
    """How often that was requested."""
    request_due: float = 0.0
    """Time of the event loop from which it may be requested again."""
    completed: bool = False
    """Whether a query has ever ended, with or without an answer."""
    refused_since: float | None = None
    """Time of the event loop since when nothing listens on the port; None if something does, or that is not known."""

    def succeeded(self, wait: float) -> None:
        """Record an answer: the next query follows after `wait` seconds."""
        self.completed, self.failures, self.refused_since = True, 0, None
        self.due = asyncio.get_running_loop().time() + wait

    def refused(self, wait: float) -> float:
        """Record that nothing listens on the port, as while a program is starting: the next query follows after `wait`.

        A refused connection costs next to nothing, so there is no back-off. Return for how many seconds it has been so.
        """
        now = asyncio.get_running_loop().time()
        self.completed, self.due = True, now + wait
        self.refused_since = now if self.refused_since is None else self.refused_since
        return now - self.refused_since

    def failed(self, wait: float) -> None:
        """Record that there was no answer: the next query follows after `wait` seconds, then after twice the time."""
        self.completed, self.failures, self.refused_since = True, self.failures + 1, None
        self.due = asyncio.get_running_loop().time() + backoff(wait, self.failures)

    def may_request(self, request: str, wait: float) -> float:
        """Return the seconds until a request may be sent, and record it if that is now.

        The first one is sent at once, and the same one again after `wait` seconds, then after twice the time, ...: a
        launcher may answer it with anything, and as often as it likes.
        """
        now = asyncio.get_running_loop().time()
        if request != self.request:
            self.request, self.requests, self.request_due = request, 0, 0.0
        if self.request_due > now:
            return self.request_due - now
        self.requests += 1
        self.request_due = now + backoff(wait, self.requests)
        return 0.0


def backoff(wait: float, times: int) -> float:
    """Return the seconds until the next request after `times` requests without success, or without news."""
    return max(wait, doubled(wait, times, MAX_WAIT))


class CallLimits:
    """Limits of the requests in flight: one for pods that answered last time, a small one for pods that did not."""

    def __init__(self, answering: int, silent: int) -> None:
        """Create the limits; the arguments are the numbers of requests in flight."""
        self._answering = asyncio.Semaphore(answering)
        self._silent = asyncio.Semaphore(silent)

    def limit_for(self, schedule: CallSchedule) -> asyncio.Semaphore:
        """Return the limit that applies to a pod."""
        return self._silent if schedule.failures else self._answering
