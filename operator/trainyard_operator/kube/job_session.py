"""The connection over which kopf lists and watches jobs.

kopf opens a watch that has ended again at once, however short it was. When a watch cannot continue, kopf lists the jobs
again, but does not say which ones were deleted meanwhile.
"""

import asyncio
import random
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
import kopf

from trainyard.protocol import constants
from trainyard_operator.controller.backoff import doubled
from trainyard_operator.kube.pod_watch import FIRST_BACKOFF, HEALTHY_AFTER, MAX_BACKOFF


@dataclass(slots=True)
class _Start:
    """When something was last started, and how often in a row it lasted too short before."""

    at: float
    in_a_row: int


class Pauses:
    """Pauses before what has lasted less than `HEALTHY_AFTER` seconds: as long as those between watches of pods."""

    def __init__(self) -> None:
        self._starts: dict[str, _Start] = {}

    async def before(self, name: str) -> None:
        """Pause before something is started, if it has ended too soon."""
        loop, last = asyncio.get_running_loop(), self._starts.get(name)
        in_a_row = last.in_a_row + 1 if last is not None and loop.time() - last.at < HEALTHY_AFTER else 0
        if in_a_row:
            await asyncio.sleep(doubled(FIRST_BACKOFF, in_a_row, MAX_BACKOFF) * random.uniform(0.5, 1.0))
        self._starts[name] = _Start(loop.time(), in_a_row)

    def was_of_use(self, name: str) -> None:
        """Record that something has had a result: the next pause is the shortest one, however soon it ends."""
        if (start := self._starts.get(name)) is not None:
            start.in_a_row = 0

    def failed(self, name: str) -> None:
        """Record that something was not started at all: kopf itself waits before it tries again."""
        self._starts.pop(name, None)


def job_session(info: kopf.ConnectionInfo, pauses: Pauses, listed: asyncio.Event) -> kopf.AiohttpSession:
    """Return kopf's own session with pauses before watches; `listed` is set whenever the jobs have been listed."""

    async def starts(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestStartParams) -> None:
        if "watch" in request.url.query:
            await pauses.before(request.url.path)

    async def answered(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams) -> None:
        watches, succeeded = "watch" in request.url.query, request.response.status == 200
        if watches and not succeeded:
            pauses.failed(request.url.path)
        if not watches and succeeded and request.url.path.endswith(f"/{constants.PLURAL}"):
            listed.set()

    async def broke(
        _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestExceptionParams
    ) -> None:
        if "watch" in request.url.query:
            pauses.failed(request.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(starts)
    trace.on_request_end.append(answered)
    trace.on_request_exception.append(broke)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        trace_configs=[trace],
    )
    return kopf.AiohttpSession(
        aiohttp_session=session,
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
    )
