"""The connection over which kopf watches jobs: pauses between watches, and what is known after a list."""

import asyncio
import random

import aiohttp
import kopf
import pytest
from aiohttp import web

from tests.support import clock
from trainyard_operator.kube import job_session as module
from trainyard_operator.kube.job_session import Pauses, job_session
from trainyard_operator.kube.pod_watch import HEALTHY_AFTER, MAX_BACKOFF

JOBS = "/apis/trainyard.dev/v1alpha1/trainingjobs"


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)


async def waits(pauses: Pauses, lasts: float, count: int, name: str = "watch") -> list[float]:
    """Return the pauses before something that lasts some seconds each time."""
    loop, found = asyncio.get_running_loop(), []
    for _ in range(count):
        started = loop.time()
        await pauses.before(name)
        found.append(round(loop.time() - started, 3))
        await asyncio.sleep(lasts)
    return found


def test_what_ends_too_soon_is_started_less_and_less_often() -> None:
    async def scenario() -> None:
        pauses = Pauses()
        assert await waits(pauses, 0, 11) == [0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, MAX_BACKOFF, MAX_BACKOFF]
        assert await waits(pauses, HEALTHY_AFTER + 1, 3) == [MAX_BACKOFF, 0, 0]
        assert await waits(pauses, 0, 2, "another") == [0, 0.2]

    clock.run(scenario())


def test_what_was_of_use_is_started_again_soon_and_what_kopf_waits_for_at_once() -> None:
    async def scenario() -> None:
        pauses = Pauses()
        await waits(pauses, 0, 6)
        pauses.was_of_use("watch")
        assert await waits(pauses, 0, 2) == [0.2, 0.4]
        pauses.failed("watch")
        assert await waits(pauses, 0, 2) == [0, 0.2]
        pauses.was_of_use("unknown")
        pauses.failed("unknown")

    clock.run(scenario())


async def test_kopf_pauses_before_a_watch_alone_and_its_lists_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.01)
    seen: list[tuple[str, str]] = []

    class Noted(Pauses):
        async def before(self, name: str) -> None:
            seen.append(("pause", name))
            await super().before(name)

        def failed(self, name: str) -> None:
            seen.append(("failure", name))

    async def answer(request: web.Request) -> web.Response:
        seen.append(("request", request.path_qs))
        assert request.headers["Authorization"] == "Bearer token"
        return web.json_response({}, status=int(request.query.get("status", 200)))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    listed = asyncio.Event()
    info = kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}", token="token")
    context = job_session(info, Noted(), listed)
    refused = f"{JOBS}?watch=true&status=503"
    paths = (f"{JOBS}?watch=true", f"{JOBS}?limit=500&status=503", "/apis", f"{JOBS}?limit=500", refused)
    were_listed = []
    try:
        for path in paths:
            async with context.aiohttp_session.get(f"{context.server}{path}"):
                were_listed.append(listed.is_set())
        await runner.cleanup()
        with pytest.raises(aiohttp.ClientConnectionError):
            await context.aiohttp_session.get(f"{context.server}{paths[0]}")
    finally:
        await context.aiohttp_session.close()
        await runner.cleanup()
    assert were_listed == [False, False, False, True, True], "a list that was refused lists nothing"
    assert seen == [
        ("pause", JOBS),
        *[("request", path) for path in paths[:4]],
        ("pause", JOBS),
        ("request", refused),
        ("failure", JOBS),
        ("pause", JOBS),
        ("failure", JOBS),
    ]
