"""Slots for requests: who gets the next one, and that none is lost."""

import asyncio
import random

from tests.support import clock
from trainyard_operator.kube.fair_slots import FairSlots


async def hold(slots: FairSlots, flow: str, log: list[str], seconds: float = 1.0) -> None:
    async with slots.slot(flow):
        log.append(flow)
        await asyncio.sleep(seconds)


def test_a_free_slot_goes_to_the_flow_that_holds_the_fewest_and_equals_take_turns() -> None:
    async def scenario() -> None:
        slots, log = FairSlots(2, per_flow=2), list[str]()
        tasks = [asyncio.create_task(hold(slots, flow, log)) for flow in "aaaaaabbcc"]
        await asyncio.gather(*tasks)
        assert "".join(log) == "aabacbacaa"
        assert asyncio.get_running_loop().time() == 5

    clock.run(scenario())


def test_a_flow_holds_no_more_than_its_share_also_while_slots_are_free() -> None:
    async def scenario() -> None:
        slots, log = FairSlots(3, per_flow=2), list[str]()
        tasks = [asyncio.create_task(hold(slots, "a", log)) for _ in range(4)]
        await clock.settle()
        assert log == ["a", "a"]
        tasks.append(asyncio.create_task(hold(slots, "b", log)))
        await clock.settle()
        assert log == ["a", "a", "b"]
        await asyncio.gather(*tasks)

    clock.run(scenario())


def test_no_slot_is_lost_or_given_twice_when_requests_are_cancelled_at_random_moments() -> None:
    async def scenario() -> None:
        slots, chance, held = FairSlots(4, per_flow=3), random.Random(7), list[str]()

        async def request(flow: str) -> None:
            async with slots.slot(flow):
                held.append(flow)
                assert len(held) <= 4
                assert held.count(flow) <= 3
                try:
                    await asyncio.sleep(chance.choice((0, 0.1, 1)))
                finally:
                    held.remove(flow)

        tasks = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(request(chance.choice("abcde"))))
            if chance.random() < 0.5:
                chance.choice(tasks).cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0, 0.05)))
        await asyncio.gather(*tasks, return_exceptions=True)
        log: list[str] = []
        last = [asyncio.create_task(hold(slots, flow, log)) for flow in "abcd"]
        await clock.settle()
        assert sorted(log) == ["a", "b", "c", "d"], "all four are free again"
        await asyncio.gather(*last)

    clock.run(scenario())
