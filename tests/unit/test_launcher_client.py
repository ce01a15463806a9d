"""Requests to launchers over real sockets, and the key that their tokens are derived from."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from yarl import URL

from tests.builders import make_job
from trainyard.protocol.launcher_state import PodState
from trainyard_operator.controller import launcher_client
from trainyard_operator.kube.api import ApiError
from trainyard_operator.kube.operator_key import operator_key

STATE = PodState(attempt=3)
JOB = make_job(status={"attempt": 3})


@asynccontextmanager
async def launcher(status: int = 200, text: str | None = None) -> AsyncIterator[tuple[URL, list[str]]]:
    """Serve a launcher that gives one response, and yield its URL and the requests it got."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path} {request.headers.get('Authorization')}")
        return web.Response(status=status, text=STATE.model_dump_json(by_alias=True) if text is None else text)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield URL.build(scheme="http", host="127.0.0.1", port=runner.addresses[0][1]), asked
    finally:
        await runner.cleanup()


async def test_each_request_has_its_path_and_the_token() -> None:
    async with launcher() as (url, asked):
        assert await launcher_client.get_state(None, "t", JOB) is None
        assert await launcher_client.get_state(url, "t", JOB) == STATE
        assert await launcher_client.start_attempt(url, "t", JOB, 4) == STATE
        assert await launcher_client.release(url, "t", JOB) == STATE
    assert asked == ["GET /v1/state Bearer t", "POST /v1/attempt/4 Bearer t", "POST /v1/release Bearer t"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, None),
        (409, None),
        (302, None),
        (200, "what?"),
        (200, "{}"),
        (200, "x" * 70_000),
        (200, '{"attempt": 20}'),
        (200, '{"attempt": 2147483647}'),
        (200, "[" * 30_000),
    ],
)
async def test_an_invalid_response_counts_as_no_response(status: int, text: str | None) -> None:
    async with launcher(status, text) as (url, _):
        assert await launcher_client.start_attempt(url, "t", JOB, 4) is None


async def test_an_unreachable_launcher_has_no_state() -> None:
    async with launcher() as (url, _):
        pass
    assert await launcher_client.get_state(url, "t", JOB) is None


def test_tokens_differ_by_job_and_by_key() -> None:
    one, other = make_job(uid="1"), make_job(uid="2")
    assert launcher_client.job_token(b"key", one) == launcher_client.job_token(b"key", one)
    assert len({launcher_client.job_token(key, job) for key in (b"key", b"kez") for job in (one, other)}) == 4


class Secrets:
    """An API server that stores one Secret."""

    def __init__(self, *errors: ApiError | None) -> None:
        self.errors = list(errors)
        self.stored: dict[str, object] | None = None

    async def request(self, verb: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if verb == "POST":
            self.stored = body
        if self.stored is None:
            raise ApiError(404, "NotFound", "no such secret")
        return self.stored


async def test_the_key_is_created_once_and_then_read() -> None:
    api = Secrets()
    first = await operator_key(api, "system", "trainyard-key")  # type: ignore[arg-type]
    assert len(first) == 32
    assert await operator_key(api, "system", "trainyard-key") == first  # type: ignore[arg-type]


async def test_of_two_operators_that_create_the_key_one_wins() -> None:
    api = Secrets(ApiError(404, "NotFound", ""), ApiError(409, "AlreadyExists", ""))
    api.stored = {"data": {"key": base64.b64encode(b"theirs").decode()}}
    assert await operator_key(api, "system", "trainyard-key") == b"theirs"  # type: ignore[arg-type]


async def test_without_permission_to_store_the_key_it_lasts_as_long_as_the_operator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Secrets(ApiError(403, "Forbidden", "no"), ApiError(403, "Forbidden", "no"))
    keys = {await operator_key(api, "system", "trainyard-key") for _ in range(2)}  # type: ignore[arg-type]
    assert len(keys) == 2
    assert "groups that fail get new pods instead of a restart in place" in caplog.text


@pytest.mark.parametrize("data", [{}, {"other": "eA=="}, {"key": "no base64"}, {"key": ""}, None])
async def test_a_secret_without_a_valid_key_does_not_end_the_operator(
    data: object, caplog: pytest.LogCaptureFixture
) -> None:
    api = Secrets()
    api.stored = {"data": data}
    assert len(await operator_key(api, "system", "trainyard-key")) == 32  # type: ignore[arg-type]
    assert "the Secret system/trainyard-key has no valid field key; delete it" in caplog.text
