"""Bearing with a cluster that does not answer for a while: an API server that restarts ends no command that watches."""

import time
from collections.abc import Callable
from typing import TypeVar

from rich.markup import escape

from trainyard_cli.cluster.options import say
from trainyard_cli.cluster.problems import Unavailable

T = TypeVar("T")

LONGEST = 300.0
"""Seconds without an answer that a command bears with."""


class Patience:
    """Asks a cluster again and again."""

    def __init__(self, seconds: float = LONGEST, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: float | None = None

    def ask(self, question: Callable[[], T]) -> T | None:
        """The answer; None if there is none just now, which is said once.

        Raises:
            Unavailable: there has been none for too long.
        """
        try:
            answer = question()
        except Unavailable as problem:
            now = self._clock()
            if self._since is None:
                self._since = now
                say(f"[yellow]waiting[/]: {escape(str(problem))}")
            elif now - self._since >= self._seconds:
                raise
            return None
        if self._since is not None:
            self._since = None
            say("the cluster answers again")
        return answer
