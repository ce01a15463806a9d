"""The work queue: each key at most once, serial per key, delays and back-off, with a clock that jumps."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support import clock
from trainyard_operator.controller.backoff import MAX_BACKOFF, MIN_BACKOFF
from trainyard_operator.controller.work_queue import LATER_AT_A_TIME, WorkQueue

Scenario = Callable[[WorkQueue[str]], Awaitable[None]]


def play(scenario: Scenario) -> None:
    """Run a scenario on a new queue."""

    async def main() -> None:
        await scenario(WorkQueue())

    clock.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def taken(queue: WorkQueue[str]) -> list[str]:
    """Return all keys that are available without waiting."""
    keys = []
    while len(queue):
        keys.append(await queue.get())
    return keys


def test_keys_come_in_the_order_in_which_they_were_added_each_once() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for key in ("a", "b", "a", "c", "b"):
            queue.add(key)
        assert await taken(queue) == ["a", "b", "c"]

    play(scenario)


def test_keys_that_may_wait_get_a_share_of_the_turns_while_others_are_queued() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for number in range(5):
            queue.add_later(f"later-{number}")
        for number in range(8):
            queue.add(f"now-{number}")
        queue.add_later("now-7")
        queue.add("later-4")
        queue.add_later("later-0")
        keys = await taken(queue)
        assert keys[:4] == ["now-0", "now-1", "now-2", "later-0"]
        assert [key for key in keys if key not in ("later-0", "later-1", "later-2", "later-3")] == [
            *(f"now-{number}" for number in range(8)),
            "later-4",
        ], "what is added at once as well does not wait"
        assert keys[-2:] == ["later-2", "later-3"]

    play(scenario)


def test_keys_that_may_wait_leave_workers_for_others() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for number in range(LATER_AT_A_TIME + 2):
            queue.add_later(f"later-{number}")
        for number in range(LATER_AT_A_TIME):
            assert await queue.get() == f"later-{number}"
        waiting = asyncio.create_task(queue.get())
        await clock.settle()
        assert not waiting.done()
        assert len(queue) == 2
        queue.add("now")
        assert await waiting == "now"
        queue.done("later-0")
        assert await queue.get() == f"later-{LATER_AT_A_TIME}"

    play(scenario)


def test_a_key_that_may_wait_and_is_being_processed_is_queued_once_more() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_later("a")
        assert await queue.get() == "a"
        queue.add_later("a")
        assert len(queue) == 0
        queue.done("a")
        queue.add("b")
        assert await taken(queue) == ["b", "a"]
        queue.add_later("a")
        queue.add("a")
        queue.done("a")
        queue.done("b")
        queue.add("c")
        assert await taken(queue) == ["a", "c"], "it was added at once as well"

    play(scenario)


def test_a_key_that_may_wait_is_held_during_its_back_off_and_counts_for_a_stall() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_later("a")
        await asyncio.sleep(3)
        assert queue.stalled_seconds() == 3
        assert await queue.get() == "a"
        wait = queue.retry("a")
        queue.done("a")
        queue.add_later("a")
        assert len(queue) == 0
        await asyncio.sleep(wait)
        assert await taken(queue) == ["a"]

    play(scenario)


def test_a_waiting_consumer_gets_the_key_at_once() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        waiting = asyncio.create_task(queue.get())
        await clock.settle()
        queue.add("a")
        assert await waiting == "a"
        assert now() == 0

    play(scenario)


def test_a_key_being_processed_is_not_returned_again_until_done() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert await taken(queue) == ["a"]
        queue.done("a")
        assert len(queue) == 0

    play(scenario)


def test_a_delayed_key_comes_when_it_is_due() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 30)
        assert await queue.get() == "a"
        assert now() == pytest.approx(30, abs=0.01)

    play(scenario)


@pytest.mark.parametrize("delays", [(30, 10), (10, 30)])
def test_of_several_delays_the_earliest_stands(delays: tuple[float, float]) -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for delay in delays:
            queue.add_after("a", delay)
        assert await queue.get() == "a"
        assert now() == pytest.approx(10, abs=0.01)
        queue.done("a")
        await asyncio.sleep(100)
        assert len(queue) == 0, "one key, once"

    play(scenario)


def test_adding_a_key_at_once_replaces_its_timer() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 30)
        queue.add("a")
        assert await taken(queue) == ["a"]
        queue.done("a")
        await asyncio.sleep(100)
        assert len(queue) == 0

    play(scenario)


def test_a_stream_of_events_is_processed_at_once_and_then_once_in_a_while() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        processed = []
        for _ in range(100):  # 10 s
            queue.add_soon("a", 2)
            while len(queue):
                processed.append(round(now(), 1))
                queue.done(await queue.get())
            await asyncio.sleep(0.1)
        assert processed == [0, 2, 4, 6, 8]

    play(scenario)


def test_what_is_added_at_once_does_not_wait_for_a_stream_of_events() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_soon("a", 2)
        assert await taken(queue) == ["a"]
        queue.add_soon("a", 2)  # while it is processed
        queue.done("a")
        assert len(queue) == 0
        queue.add("a")
        assert await taken(queue) == ["a"]
        queue.done("a")
        await asyncio.sleep(10)
        assert len(queue) == 0, "that was processed with it"

    play(scenario)


def test_an_event_while_a_key_is_processed_is_not_lost() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await taken(queue) == ["a"]
        queue.add_soon("a", 2)
        queue.done("a")
        assert await queue.get() == "a"
        assert now() == pytest.approx(2, abs=0.01)

    play(scenario)


def test_a_stream_of_events_does_not_end_a_backoff() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.retry("a", at_least=30)
        queue.add_soon("a", 2)
        assert await queue.get() == "a"
        assert now() == pytest.approx(30, abs=0.01)

    play(scenario)


def test_when_keys_were_processed_is_forgotten() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for number in range(100):
            queue.add(f"job-{number}")
            queue.done(await queue.get())
            await asyncio.sleep(1)
        assert len(queue._done_at) <= 11

    play(scenario)


@pytest.mark.parametrize("delay", [0, -5])
def test_a_delay_of_nothing_is_now(delay: float) -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", delay)
        assert len(queue) == 1

    play(scenario)


def test_each_failure_in_a_row_doubles_the_wait_up_to_a_limit_and_a_success_resets_it() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        waits = []
        for _ in range(40):
            waits.append(queue.retry("a"))
            assert await queue.get() == "a"
            queue.done("a")
        assert waits[:4] == [MIN_BACKOFF, 2 * MIN_BACKOFF, 4 * MIN_BACKOFF, 8 * MIN_BACKOFF]
        assert waits[-1] == MAX_BACKOFF
        assert now() == pytest.approx(sum(waits), rel=0.01)
        queue.forget("a")
        assert queue.retry("a") == MIN_BACKOFF

    play(scenario)


def test_a_dropped_key_leaves_no_timer_and_no_failures_behind() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.retry("a")
        queue.drop("a")
        await asyncio.sleep(1000)
        assert len(queue) == 0
        assert queue.retry("a") == MIN_BACKOFF

    play(scenario)


def test_nothing_that_is_added_ends_a_backoff_but_a_change_by_a_user_does() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for _ in range(12):
            queue.add("a")
            assert await queue.get() == "a"
            wait = queue.retry("a")
            queue.add("a")  # an event while it is processed
            queue.done("a")
            queue.add("a")
            queue.add_after("a", wait / 2)
            assert len(queue) == 0
            failed = now()
            assert await queue.get() == "a"
            assert now() - failed == pytest.approx(wait, abs=0.01)
            queue.retry("a")
            queue.done("a")
            queue.add_now("a")
            assert len(queue) == 1
            assert await queue.get() == "a"
            assert queue.retry("a") == MIN_BACKOFF, "what the user has changed has not failed yet"
            queue.add_now("a")
            queue.done("a")
            assert await taken(queue) == ["a"], "a change during a try that fails is not lost"
            queue.done("a")
        await asyncio.sleep(1000)
        assert len(queue) == 0

    play(scenario)


def test_a_server_may_ask_for_more_time_than_the_backoff_but_not_for_hours() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        assert queue.retry("a", at_least=7) == 7
        assert queue.retry("a", at_least=0) == 2 * MIN_BACKOFF
        assert queue.retry("a", at_least=10_000) == MAX_BACKOFF
        assert [queue.retry("a", at_most=1) for _ in range(9)][-1] == 1

    play(scenario)


def test_a_key_added_while_it_is_dropped_is_not_lost() -> None:
    """A job is deleted and created again under its name while the operator still works on the old one."""

    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")  # the new job's event
        queue.drop("a")  # the old one is gone
        queue.done("a")
        assert await taken(queue) == ["a"]

    play(scenario)


def test_a_queue_is_stalled_only_while_work_waits() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        await asyncio.sleep(500)
        assert queue.stalled_seconds() == 0
        queue.add("a")
        assert queue.stalled_seconds() == 0, "idle time is no stall"
        await asyncio.sleep(7)
        assert queue.stalled_seconds() == pytest.approx(7)
        await queue.get()
        queue.add("b")
        await asyncio.sleep(5)
        assert queue.stalled_seconds() == pytest.approx(12)
        queue.done("a")
        assert queue.stalled_seconds() == 0, "some work was finished"
        assert await queue.get() == "b"
        queue.done("b")
        await asyncio.sleep(100)
        assert queue.stalled_seconds() == 0

    play(scenario)


def test_two_workers_share_the_keys_and_never_one_key() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        active: list[str] = []
        processed: list[str] = []

        async def work() -> None:
            while True:
                key = await queue.get()
                assert key not in active
                active.append(key)
                processed.append(key)
                await asyncio.sleep(1)
                active.remove(key)
                queue.done(key)

        workers = [asyncio.create_task(work()) for _ in range(2)]
        for _ in range(20):
            queue.add("a")
            queue.add("b")
            await asyncio.sleep(0.1)
        await asyncio.sleep(10)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert 4 <= len(processed) <= 8
        assert set(processed) == {"a", "b"}

    play(scenario)
