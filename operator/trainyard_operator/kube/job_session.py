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


def job_session(info: kopf.ConnectionInfo, pauses: Pauses, listed: asyncio.Event) -> kopf.AiohttpSession:
    """Return kopf's own session with pauses before watches; `listed` is set whenever the jobs have been listed."""

    async def starts(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestStartParams) -> None:
        if "watch" in request.url.query:
            await pauses.before(request.url.path)

    async def ended(_: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestEndParams) -> None:
        is_list = request.url.path.endswith(f"/{constants.PLURAL}") and "watch" not in request.url.query
        if is_list and request.response.status == 200:
            listed.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(starts)
    trace.on_request_end.append(ended)
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
