"""An event loop whose time stands still while there is work, and jumps to the next timer when there is none."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait for a time-out: it moves the loop's clock there."""

    jump: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("the test waits for something that can never happen: no timer is set")
        ready = super().select(0)
        if not ready and timeout > 0:
            self.jump(timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """asyncio without waiting; `now` is its time in seconds."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.jump = self._jump
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def _jump(self, seconds: float) -> None:
        # A timer that is due in 1e-9 s must not need several rounds because of rounding.
        self.now += max(seconds, 1e-6)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop whose time jumps: a sleep of an hour takes no time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


async def settle(rounds: int = 50) -> None:
    """Let every task that can run do so, without letting time pass."""
    for _ in range(rounds):
        await asyncio.sleep(0)
