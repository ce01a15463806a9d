"""The API client: how many requests at a time, pages of a list, and what counts as an error."""

import asyncio
import json
import math
from typing import Any

import pytest

from tests.builders import make_job, make_pod
from tests.support import clock
from trainyard_operator.kube.api import DIRECT, IN_FLIGHT, MAX_MESSAGE, PER_JOB, ApiError, KubeApi
from trainyard_operator.kube.backend import KubernetesBackend

SECONDS = 0.1


class SlowApi(KubeApi):
    """A server that needs a tenth of a second for each answer."""

    def __init__(self, *answers: tuple[int, str], retry_after: str = "") -> None:
        self.counted: list[tuple[str, int]] = []
        super().__init__(None, lambda verb, code: self.counted.append((verb, code)))  # type: ignore[arg-type]
        self.answers = list(answers)
        self.retry_after = retry_after
        self.now = self.most = 0
        self.queries: list[dict[str, str] | None] = []

    async def _send(
        self, verb: str, path: str, body: Any, query: dict[str, str] | None, content_type: str, patience: float
    ) -> tuple[int, str, str]:
        self.queries.append(query)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(SECONDS)
        self.now -= 1
        code, text = self.answers.pop(0) if self.answers else (201, json.dumps(body))
        return code, text, self.retry_after


def test_children_of_a_job_are_created_many_at_a_time_and_not_too_many() -> None:
    async def scenario() -> None:
        api = SlowApi()
        pods = [make_pod(make_job(replicas=200), index) for index in range(200)]
        created: list[dict[str, Any]] = []
        await KubernetesBackend(api, b"key").create(make_job(), pods, on_created=created.append)
        assert {pod["metadata"]["name"] for pod in created} == {pod["metadata"]["name"] for pod in pods}
        assert len(created) == len(pods)
        assert api.most == PER_JOB
        slow_start = [1, 2, 4, 8, 16, 32]
        rounds = len(slow_start) + math.ceil((len(pods) - sum(slow_start)) / PER_JOB)
        assert asyncio.get_running_loop().time() == pytest.approx(rounds * SECONDS, rel=0.1), "not 20 s one by one"

    clock.run(scenario())


def page(names: list[str], version: int, more: str = "") -> tuple[int, str]:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return 200, json.dumps({"items": [{"metadata": {"name": n}} for n in names], "metadata": metadata})


def test_a_list_is_read_page_by_page() -> None:
    async def scenario() -> None:
        api = SlowApi(page(["a", "b"], 7, "token"), page(["c"], 7))
        items, version = await api.list("/pods", "app=x")
        assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
        assert version == 7
        assert api.queries == [
            {"limit": "500", "labelSelector": "app=x"},
            {"limit": "500", "labelSelector": "app=x", "continue": "token"},
        ]

    clock.run(scenario())


def test_an_empty_list_may_hold_null() -> None:
    async def scenario() -> None:
        api = SlowApi((200, '{"items": null, "metadata": {"resourceVersion": "3"}}'))
        assert await api.list("/pods") == ([], 3)

    clock.run(scenario())


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (409, '{"reason": "AlreadyExists", "message": "pods x already exists"}', "pods x already exists"),
        (502, "<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (500, "", "HTTP 500"),
        (503, "{}", "HTTP 503"),
    ],
)
def test_a_response_other_than_success_is_an_error_with_the_servers_message(code: int, text: str, message: str) -> None:
    async def scenario() -> None:
        api = SlowApi((code, text))
        with pytest.raises(ApiError) as error:
            await api.request("POST", "/pods", {})
        assert (error.value.code, str(error.value)) == (code, message)
        assert api.counted == [("POST", code)]
        assert api.now == 0

    clock.run(scenario())


@pytest.mark.parametrize(("header", "seconds"), [("", 0), ("7", 7), ("Wed, 21 Oct 2037 07:28:00 GMT", 0), ("-1", 0)])
def test_an_error_says_when_the_server_wants_to_be_asked_again(header: str, seconds: float) -> None:
    async def scenario() -> None:
        api = SlowApi((429, '{"message": "too many requests"}'), retry_after=header)
        with pytest.raises(ApiError) as error:
            await api.request("POST", "/pods", {})
        assert error.value.retry_after == seconds

    clock.run(scenario())


def test_a_message_of_any_length_is_bounded_and_cleaned() -> None:
    message = str(ApiError(422, "Invalid", "field is \x1b[31m" + "x" * 1_000_000 + "\udce9 wrong"))
    assert len(message) == MAX_MESSAGE
    assert message.startswith("field is [31mx")
    assert message.endswith("x\N{REPLACEMENT CHARACTER} wrong")


def test_many_requests_of_one_job_leave_slots_for_other_jobs_and_for_single_requests() -> None:
    async def scenario() -> None:
        api = SlowApi()
        start = asyncio.get_running_loop().time()
        flood = [asyncio.create_task(api.request("POST", "/pods", {}, flow="team/big")) for _ in range(10 * IN_FLIGHT)]
        await clock.settle()
        assert api.now == PER_JOB
        others = [api.request("POST", "/pods", {}, flow="team/small") for _ in range(IN_FLIGHT - PER_JOB)]
        await asyncio.gather(*others, *(api.request("GET", "/jobs") for _ in range(DIRECT)))
        assert asyncio.get_running_loop().time() - start == pytest.approx(SECONDS)
        assert api.most == IN_FLIGHT + DIRECT
        await asyncio.gather(*flood)

    clock.run(scenario())
