"""The work queue: which job to look at next. Serial per job, parallel over jobs, each key at most once."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_RETRY = 0.05
LAST_RETRY = 60.0


class WorkQueue(Generic[K]):
    """A queue of keys, as client-go has it: deduplicated, delayed, with backoff per key.

    A key that is added while it is being worked on comes back once, after `done`. Times are those of the event
    loop, in seconds. All methods belong to the loop's thread.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[K, float] = OrderedDict()  # key -> since when
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._arrival = asyncio.Event()
        self._last_done = self._now()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Ask for a look at `key` as soon as possible."""
        self._cancel_timer(key)
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            if not self._waiting and not self._active:
                self._last_done = self._now()  # idle time is not a stall
            self._waiting[key] = self._now()
            self._arrival.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for a look at `key` in `seconds`; of several such wishes the earliest stands."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._now() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = asyncio.get_running_loop().call_at(due, self._ring, key)

    def retry(self, key: K) -> float:
        """Ask for another look at `key` after a failure; the wait doubles each time. Returns the wait."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures, 32))
        self.add_after(key, wait)
        return wait

    def forget(self, key: K) -> None:
        """Note that `key` was worked on with success: its next retry starts from the shortest wait."""
        self._failures.pop(key, None)

    def drop(self, key: K) -> None:
        """Forget the failures and the delay of a key whose job is gone.

        A wish that has arrived meanwhile stays: it may be for a new job of that name.
        """
        self.forget(key)
        self._cancel_timer(key)

    async def get(self) -> K:
        """Wait for the next key and take it; `done` must follow."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        key, _ = self._waiting.popitem(last=False)
        self._active.add(key)
        return key

    def done(self, key: K) -> None:
        """Give a key back after work, successful or not."""
        self._active.discard(key)
        self._last_done = self._now()
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def stalled_seconds(self) -> float:
        """How long work has been waiting without any being finished; 0 if none waits."""
        if not self._waiting and not self._active:
            return 0.0
        return self._now() - self._last_done

    def _ring(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
