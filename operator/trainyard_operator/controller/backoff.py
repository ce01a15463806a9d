"""Exponential back-off after failures."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MIN_BACKOFF = 0.05
MAX_BACKOFF = 60.0


def doubled(first: float, times: int, longest: float) -> float:
    """Return the seconds to wait after something has happened `times` times in a row: `first`, then twice that, ..."""
    return min(longest, first * 2.0 ** min(times - 1, 32))


@dataclass(slots=True)
class _Failures:
    """What is remembered about a key that has failed."""

    subject: object
    count: int = 0
    until: float = 0.0


class Backoff(Generic[K]):
    """The back-off of keys that fail, in seconds of the event loop's clock.

    A failure may have a subject, for example one version of an object: a failure of another subject counts as the
    first one again.
    """

    def __init__(self) -> None:
        self._failures: dict[K, _Failures] = {}

    def fail(self, key: K, subject: object = None, *, at_least: float = 0.0, at_most: float = MAX_BACKOFF) -> float:
        """Record a failure, and return the seconds to wait, twice as many as after the failure before it.

        Args:
            key: what has failed.
            subject: version of it that has failed.
            at_least: seconds that a server asked for; more than `MAX_BACKOFF` are not granted.
            at_most: limit of the doubling.
        """
        failures = self._failures.get(key)
        if failures is None or failures.subject != subject:
            failures = self._failures[key] = _Failures(subject)
        failures.count += 1
        wait = max(doubled(MIN_BACKOFF, failures.count, at_most), min(at_least, MAX_BACKOFF))
        failures.until = _now() + wait
        return wait

    def remaining(self, key: K, subject: object = None) -> float:
        """Return the seconds until the back-off of a key ends; 0 if it has none, or one of another subject."""
        failures = self._failures.get(key)
        if failures is None or failures.subject != subject:
            return 0.0
        return max(0.0, failures.until - _now())

    def has_failed(self, key: K) -> bool:
        """Return whether the last try of a key failed."""
        return key in self._failures

    def reset(self, key: K) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
