"""Parts of the operator that fail are restarted and counted, and the others go on."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from tests.support import clock
from trainyard_operator.controller.cache import Cache
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.metrics import OperatorMetrics
from trainyard_operator.parts import MAX_BACKOFF, Part, run_parts


class Parts:
    """One part that never ends, and one that misbehaves in some way."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.failures: Counter[Part] = Counter()
        self.healthy_for = 0.0
        self.error: Exception | None = OverflowError("cannot convert float infinity to integer")

    async def sound(self) -> None:
        await asyncio.Event().wait()

    async def unsound(self) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.healthy_for)
        if self.error is not None:
            raise self.error

    async def run(self, seconds: float) -> None:
        parts = {Part.RECONCILE: self.sound, Part.PROGRESS: self.unsound}
        running = asyncio.create_task(run_parts(parts, lambda part: self.failures.update([part])))
        await asyncio.sleep(seconds)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @property
    def waits(self) -> list[float]:
        return [round(b - a, 3) for a, b in pairwise(self.starts)]


@pytest.mark.parametrize("ends", [False, True], ids=["fails", "ends without an error"])
def test_a_part_is_restarted_after_longer_and_longer_waits(ends: bool, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts()
    if ends:
        parts.error = None
    clock.run(parts.run(600))
    assert parts.waits[:7] == [1, 2, 4, 8, 16, 32, MAX_BACKOFF]
    assert parts.failures == {Part.PROGRESS: len(parts.starts)}
    assert "the part progress of the operator has " + ("ended" if ends else "failed") in caplog.text
    assert ("OverflowError" in caplog.text) is not ends


def test_a_part_that_was_healthy_for_long_is_restarted_soon() -> None:
    parts = Parts()
    parts.healthy_for = 1000
    clock.run(parts.run(10_000))
    assert set(parts.waits) == {1001}


async def test_failures_are_counted_from_0() -> None:
    metrics = OperatorMetrics(Cache(), WorkQueue())

    def value(part: Part) -> float | None:
        return metrics.registry.get_sample_value("trainyard_operator_part_failures_total", {"part": part})

    assert [value(part) for part in Part] == [0] * len(Part)
    metrics.count_failure(Part.WATCH)
    assert value(Part.WATCH) == 1
