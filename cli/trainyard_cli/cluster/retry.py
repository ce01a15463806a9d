"""Retries of commands that watch a cluster, so that a restart of the API server does not end them."""

import time
from collections.abc import Callable
from typing import TypeVar

from trainyard_cli.cluster.errors import UnavailableError
from trainyard_cli.output import print_notice

T = TypeVar("T")

POLL_SECONDS = 2.0
"""Seconds between two requests of a command that watches."""
MAX_OUTAGE_SECONDS = 300.0
"""Seconds without a response after which a command gives up."""


class Retry:
    """Requests that may fail while the API server is unavailable."""

    def __init__(self, seconds: float = MAX_OUTAGE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._unavailable_since: float | None = None

    def call(self, request: Callable[[], T]) -> T | None:
        """Return the response, or None while the server is unavailable; the first failure is reported once.

        Raises:
            UnavailableError: there has been no response for too long.
        """
        try:
            response = request()
        except UnavailableError as error:
            now = self._clock()
            if self._unavailable_since is None:
                self._unavailable_since = now
                print_notice(str(error), label="waiting", style="yellow")
            elif now - self._unavailable_since >= self._seconds:
                raise
            return None
        if self._unavailable_since is not None:
            self._unavailable_since = None
            print_notice("the cluster responds again")
        return response
