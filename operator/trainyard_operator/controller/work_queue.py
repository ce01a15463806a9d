"""The work queue of the controller: serial per job, parallel over jobs, each key queued at most once."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from trainyard_operator.controller.backoff import MAX_BACKOFF, Backoff

K = TypeVar("K", bound=Hashable)

LATER_SHARE = 4
"""Of so many keys one is taken from those that may wait, as long as others are queued."""
LATER_AT_A_TIME = 16
"""Most keys that may wait and are processed at a time, so that one that may not finds a free worker."""
_REMEMBERED = 10.0
"""Seconds for which it is remembered when a key was processed: the longest wait of `add_soon`."""


class WorkQueue(Generic[K]):
    """A queue of keys with the semantics of client-go's: deduplicated, delayed, with back-off per key.

    A key that is added while it is being processed is queued once more after `done`. A key that has failed is held
    until its back-off ends, whatever is added meanwhile. Keys of `add_later` wait while there are others, but get a
    share of the turns. Times are those of the event loop, in seconds. All methods must be called in the thread of the
    loop.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[K, float] = OrderedDict()  # key -> time of arrival
        self._later: OrderedDict[K, float] = OrderedDict()
        """Keys that may wait -> time of arrival."""
        self._taken = 0
        self._processing: set[K] = set()
        self._processing_later: set[K] = set()
        self._dirty: set[K] = set()
        self._dirty_later: set[K] = set()
        self._urgent: set[K] = set()
        self._soon: dict[K, float] = {}
        """Waits of keys that `add_soon` has added while they are being processed."""
        self._done_at: OrderedDict[K, float] = OrderedDict()
        """When keys were last processed, the earliest first."""
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._held: set[K] = set()
        """Keys in their back-off, each with a timer."""
        self._backoff: Backoff[K] = Backoff()
        self._arrival = asyncio.Event()
        self._last_done = self._now()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._later)

    def add(self, key: K) -> None:
        """Queue `key`: at once, or if it has failed at the end of its back-off."""
        if key in self._held:
            return
        self._cancel_timer(key)
        if key in self._processing:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._later.pop(key, None)
            self._append(key, self._waiting)

    def add_later(self, key: K) -> None:
        """Queue `key` as one that may wait while others are queued: nothing has happened that decides something."""
        if key in self._held:
            return
        self._cancel_timer(key)
        if key in self._processing:
            self._dirty_later.add(key)
        elif key not in self._waiting and key not in self._later:
            self._append(key, self._later)

    def _append(self, key: K, keys: OrderedDict[K, float]) -> None:
        if not len(self) and not self._processing:
            self._last_done = self._now()  # idle time is not a stall
        keys[key] = self._now()
        self._arrival.set()

    def add_now(self, key: K) -> None:
        """Queue `key` at once, also during its back-off, since a user has changed what it stands for."""
        if key in self._processing:
            self._urgent.add(key)
            return
        self.drop(key)
        self.add(key)

    def add_soon(self, key: K, wait: float) -> None:
        """Queue `key` at once or, if it was processed less than `wait` seconds ago, when they have passed.

        So a stream of events that decide nothing leads to one reconciliation in `wait` seconds (at most 10).
        """
        if key in self._processing:
            self._soon[key] = min(wait, self._soon.get(key, wait))
        elif key not in self._waiting and key not in self._later:
            last = self._done_at.get(key)
            self.add_after(key, 0.0 if last is None else last + wait - self._now())

    def add_after(self, key: K, seconds: float) -> None:
        """Queue `key` in `seconds`; of several deadlines the earliest wins, but none ends a back-off."""
        if key in self._held:
            return
        if seconds <= 0:
            self.add(key)
            return
        due = self._now() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._set_timer(key, due)

    def retry(self, key: K, *, at_least: float = 0.0, at_most: float = MAX_BACKOFF) -> float:
        """Hold `key` after a failure, with exponential back-off, then queue it again. Return the wait in seconds."""
        wait = self._backoff.fail(key, at_least=at_least, at_most=at_most)
        self._cancel_timer(key)
        self._set_timer(key, self._now() + wait)
        self._held.add(key)
        return wait

    def forget(self, key: K) -> None:
        """Reset the back-off of `key` after a success."""
        self._backoff.reset(key)

    def drop(self, key: K) -> None:
        """Reset the back-off and the delay of a key whose job is gone.

        A key that was added meanwhile stays queued: it may belong to a new job of that name.
        """
        self.forget(key)
        self._held.discard(key)
        self._cancel_timer(key)

    async def get(self) -> K:
        """Wait for the next key and return it; the caller must call `done` afterwards."""
        while (keys := self._next()) is None:
            self._arrival.clear()
            await self._arrival.wait()
        key, _ = keys.popitem(last=False)
        self._taken += 1
        self._processing.add(key)
        if keys is self._later:
            self._processing_later.add(key)
        return key

    def _next(self) -> OrderedDict[K, float] | None:
        """Return the keys of which the first one is next; None if there is none.

        A worker that has processed a key that may wait asks for the next one itself, so none is forgotten here.
        """
        may_take_later = bool(self._later) and len(self._processing_later) < LATER_AT_A_TIME
        is_turn_of_later = self._taken % LATER_SHARE == LATER_SHARE - 1
        if self._waiting and not (may_take_later and is_turn_of_later):
            return self._waiting
        return self._later if may_take_later else None

    def done(self, key: K) -> None:
        """Mark a key as processed, successfully or not."""
        self._processing.discard(key)
        self._processing_later.discard(key)
        self._last_done = self._now()
        self._note_done(key)
        dirty, urgent, soon = key in self._dirty, key in self._urgent, self._soon.pop(key, None)
        later = key in self._dirty_later
        self._dirty.discard(key)
        self._dirty_later.discard(key)
        self._urgent.discard(key)
        if urgent:
            self.add_now(key)
        elif dirty:
            self.add(key)
        elif later:
            self.add_later(key)
        elif soon is not None:
            self.add_after(key, soon)

    def stalled_seconds(self) -> float:
        """Return the seconds since any key was processed while keys are queued; 0 if none is queued."""
        if not len(self) and not self._processing:
            return 0.0
        return self._now() - self._last_done

    def _note_done(self, key: K) -> None:
        """Remember when a key was processed, and forget that of keys for which it does not matter any more."""
        self._done_at[key] = self._last_done
        self._done_at.move_to_end(key)
        while next(iter(self._done_at.values())) < self._last_done - _REMEMBERED:
            self._done_at.popitem(last=False)

    def _set_timer(self, key: K, due: float) -> None:
        self._timers[key] = asyncio.get_running_loop().call_at(due, self._on_timer, key)

    def _on_timer(self, key: K) -> None:
        self._timers.pop(key, None)
        self._held.discard(key)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
