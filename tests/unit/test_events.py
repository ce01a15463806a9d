"""Events: what occurs again is counted in one object, and what varies too often is combined."""

from datetime import datetime, timedelta
from typing import Any

from tests.builders import NOW, make_job
from tests.support import clock
from trainyard_operator.kube.api import ApiError
from trainyard_operator.kube.events import SIMILAR, EventRecorder
from trainyard_operator.lifecycle.status_builder import Event

JOB = make_job()


class Api:
    """Stores events."""

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.now = NOW

    async def request(self, verb: str, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self.requests += 1
        if verb == "POST":
            name = body["metadata"]["name"]
            assert name not in self.stored
            self.stored[name] = body
        elif (name := path.rpartition("/")[2]) in self.stored:
            self.stored[name] |= body
        else:
            raise ApiError(404, "NotFound", "it has expired")
        return {}

    def time(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(event["message"], event["count"]) for event in self.stored.values()]


def record(*events: Event, api: Api | None = None, recorder: EventRecorder | None = None) -> Api:
    api = api or Api()
    recorder = recorder or EventRecorder(api, api.time)  # type: ignore[arg-type]

    async def scenario() -> None:
        for event in events:
            await recorder.record(JOB, event)

    clock.run(scenario())
    return api


def failed(message: str) -> Event:
    return Event("Warning", "WorkerFailed", message)


def test_an_event_that_occurs_again_is_counted() -> None:
    api = record(*[failed("exit code 1")] * 3)
    (event,) = api.stored.values()
    assert (event["count"], event["message"]) == (3, "exit code 1")
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2030-01-01T12:00:01Z", "2030-01-01T12:00:03Z")


def test_events_with_another_message_reason_or_job_are_not_counted_together() -> None:
    api = Api()
    recorder = EventRecorder(api, api.time)  # type: ignore[arg-type]
    record(failed("a"), failed("b"), Event("Warning", "Hang", "a"), Event("Normal", "Hang", "a"), recorder=recorder)

    async def of_another() -> None:
        await recorder.record(make_job("other", uid="uid-2"), failed("a"))

    clock.run(of_another())
    assert [count for _, count in api.told] == [1] * 5


def test_events_that_vary_too_often_are_combined() -> None:
    api = record(*[failed(f"attempt {number}") for number in range(SIMILAR + 5)])
    *single, combined = api.told
    assert single == [(f"attempt {number}", 1) for number in range(SIMILAR)]
    assert combined == (f"(combined from similar events): attempt {SIMILAR + 4}", 5)
    assert api.requests == SIMILAR + 5, "one for each"


def test_a_message_that_is_known_is_counted_although_others_are_combined() -> None:
    messages = [*range(SIMILAR + 2), 0]
    api = record(*[failed(f"attempt {number}") for number in messages])
    assert api.told[0] == ("attempt 0", 2)


def test_after_a_quiet_time_events_are_single_again() -> None:
    api = Api()
    recorder = EventRecorder(api, api.time)  # type: ignore[arg-type]
    record(*[failed(f"attempt {number}") for number in range(SIMILAR + 1)], api=api, recorder=recorder)
    api.now += timedelta(minutes=10)
    record(failed("later"), api=api, recorder=recorder)
    assert api.told[-1] == ("later", 1)


def test_an_event_that_has_expired_is_created_anew() -> None:
    api = Api()
    recorder = EventRecorder(api, api.time)  # type: ignore[arg-type]
    record(failed("exit code 1"), api=api, recorder=recorder)
    api.stored.clear()
    record(*[failed("exit code 1")] * 2, api=api, recorder=recorder)
    assert api.told == [("exit code 1", 2)]


def test_no_message_is_longer_than_the_api_server_accepts() -> None:
    api = record(*[failed(f"{number} " + "x" * 2000) for number in range(SIMILAR + 1)])
    assert {len(message) for message, _ in api.told} == {1024}
