"""A proxy in front of an API server that causes trouble, by a random schedule with a fixed seed.

It speaks plain HTTP to its client and logs in to the API server as the administrator.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.support.kube import open_session


class Trouble(StrEnum):
    """What goes wrong in one period of the schedule."""

    NONE = "none"
    LATENCY = "latency"
    """Requests arrive late."""
    SLOW = "slow"
    """Answers come late, as those of an API server whose etcd is slow: what was written is written already."""
    CONFLICT = "409"
    """Writes are refused, although nothing conflicts."""
    BUSY = "429"
    """The server asks the client to come back after a second."""
    ERROR = "500"
    UNAVAILABLE = "503"
    LOST = "lost"
    """The connection breaks before the answer, half of the times after the request was carried out."""
    CUT = "cut"
    """Watches end in the middle, some of them within an event."""
    EXPIRED = "410"
    """Watches end, because the server does not remember the version from which they continue."""
    SILENCE = "silence"
    """Nothing goes through in either direction; no connection is closed."""


SCHEDULED: Sequence[Trouble] = tuple(Trouble)
HIT = 0.4
"""Share of the requests that suffer from the trouble of their period."""
PERIOD = (0.3, 1.2)
"""Shortest and longest period in seconds. A silence lasts a second."""
_WRITES = ("PATCH", "PUT", "POST", "DELETE")
_CODES = {Trouble.CONFLICT: "Conflict", Trouble.BUSY: "TooManyRequests", Trouble.ERROR: "InternalError"}
_ANSWERED = (Trouble.CONFLICT, Trouble.BUSY, Trouble.ERROR, Trouble.UNAVAILABLE)
"""Troubles in which the proxy answers instead of the server."""


class FaultProxy:
    """Forwards requests, and lets some of them fail.

    Args:
        session: session with the API server.
        seed: seed of the schedule; None: all goes well until `trouble` is set.
    """

    def __init__(self, session: aiohttp.ClientSession, seed: int | None) -> None:
        self._session, self._dice = session, random.Random(seed)
        self._open = asyncio.Event()
        self._open.set()
        self._watches: set[asyncio.Future[Trouble]] = set()
        self._trouble = Trouble.NONE
        self._ended = False
        self.hit = HIT
        self.requests: Counter[str] = Counter()
        """Requests by verb (WATCH for a watch)."""
        self.faults: Counter[Trouble] = Counter()
        """Requests and watches that have failed, by the trouble."""
        self.port = 0

    @property
    def trouble(self) -> Trouble:
        """The present trouble."""
        return self._trouble

    @trouble.setter
    def trouble(self, trouble: Trouble) -> None:
        self._trouble = trouble
        if trouble is Trouble.SILENCE:
            self._open.clear()
        else:
            self._open.set()
        if trouble in (Trouble.CUT, Trouble.EXPIRED):
            self.end_watches(trouble)

    def end_watches(self, trouble: Trouble) -> None:
        """End all watches, each in the way of a trouble."""
        for ending in self._watches:
            if not ending.done():
                ending.set_result(trouble)

    async def follow_schedule(self) -> None:
        """Change the trouble at random, until `calm` is called."""
        while not self._ended:
            self.trouble = self._dice.choice(SCHEDULED)
            await asyncio.sleep(1.0 if self.trouble is Trouble.SILENCE else self._dice.uniform(*PERIOD))

    def calm(self) -> None:
        """End the trouble for good."""
        self._ended = True
        self.trouble = Trouble.NONE

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        watches = request.query.get("watch") == "true"
        verb = "WATCH" if watches else request.method
        self.requests[verb] += 1
        body = await request.read()
        await self._open.wait()
        trouble = self._draw(verb)
        if trouble in _ANSWERED:
            return _refusal(trouble)
        if trouble is Trouble.LATENCY:
            await asyncio.sleep(self._dice.uniform(0.05, 0.5))
        if trouble is Trouble.LOST and self._dice.random() < 0.5:
            return _break(request)
        if watches:
            return await self._watch(request, trouble)
        headers = _headers(request)
        async with self._session.request(
            request.method, request.rel_url, data=body or None, headers=headers
        ) as response:
            answer = await response.read()
        if trouble is Trouble.LOST:
            return _break(request)
        if trouble is Trouble.SLOW:
            await asyncio.sleep(self._dice.uniform(0.2, 1.5))
        await self._open.wait()
        return web.Response(body=answer, status=response.status, headers=_headers(response))

    def _draw(self, verb: str) -> Trouble:
        """Return the trouble that one request suffers from."""
        trouble = self._trouble
        applies = {
            Trouble.NONE: False,
            Trouble.SILENCE: False,
            Trouble.CONFLICT: verb in _WRITES,
            Trouble.CUT: verb == "WATCH",
            Trouble.EXPIRED: verb == "WATCH",
        }
        if not applies.get(trouble, True) or self._dice.random() >= self.hit:
            return Trouble.NONE
        self.faults[trouble] += 1
        return trouble

    async def _watch(self, request: web.Request, trouble: Trouble) -> web.StreamResponse:
        """Forward a watch, event by event, until the server or the trouble ends it."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(request.rel_url, headers=_headers(request), timeout=timeout) as upstream:
            response = web.StreamResponse(status=upstream.status, headers=_headers(upstream))
            ending: asyncio.Future[Trouble] = asyncio.get_running_loop().create_future()
            if trouble in (Trouble.CUT, Trouble.EXPIRED):
                ending.set_result(trouble)
            self._watches.add(ending)
            try:
                await response.prepare(request)
                await self._forward_lines(request, upstream, response, ending)
            # One of both sides has closed its connection.
            except (aiohttp.ClientError, ConnectionError):
                pass
            finally:
                self._watches.discard(ending)
        return response

    async def _forward_lines(
        self,
        request: web.Request,
        upstream: aiohttp.ClientResponse,
        response: web.StreamResponse,
        ending: "asyncio.Future[Trouble]",
    ) -> None:
        """Forward lines until the server or `ending` ends the watch."""
        while True:
            reading = asyncio.ensure_future(upstream.content.readuntil(b"\n"))
            try:
                either: set[asyncio.Future[Any]] = {reading, ending}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                await self._open.wait()
                if reading.done() and not ending.done():
                    if not (line := reading.result()):
                        return
                    await response.write(line)
                    continue
            finally:
                reading.cancel()
                await asyncio.wait({reading})
            self.faults[ending.result()] += 1
            if ending.result() is Trouble.EXPIRED:
                await response.write(_expired())
            elif self._dice.random() < 0.5:
                await response.write(b'{"type":"MODIFIED","object":{"kind":')
                _break(request)
            return


def _headers(message: web.Request | aiohttp.ClientResponse) -> Mapping[str, str]:
    """Return the headers that a proxy passes on."""
    passed = ("Content-Type", "Accept", "Retry-After")
    return {name: message.headers[name] for name in passed if name in message.headers}


def _refusal(trouble: Trouble) -> web.Response:
    code = int(trouble)
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": f"trouble {trouble}"}
    headers = {"Retry-After": "1"} if trouble is Trouble.BUSY else {}
    reason = _CODES.get(trouble, "ServiceUnavailable")
    return web.json_response({**status, "reason": reason}, status=code, headers=headers)


def _expired() -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}
    return json.dumps({"type": "ERROR", "object": {**status, "message": "too old resource version"}}).encode() + b"\n"


def _break(request: web.Request) -> web.Response:
    """Break the connection of a request."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@asynccontextmanager
async def fault_proxy(kubeconfig: Path, seed: int | None = None) -> AsyncIterator[FaultProxy]:
    """Serve a proxy of the API server that a kubeconfig names, on a free port of this machine.

    With a seed the trouble begins at once and follows a schedule until `FaultProxy.calm` is called.
    """
    async with open_session(kubeconfig, limit=0) as session:
        proxy = FaultProxy(session, seed)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.port = runner.addresses[0][1]
        schedule = asyncio.create_task(proxy.follow_schedule()) if seed is not None else None
        try:
            yield proxy
        finally:
            if schedule is not None:
                schedule.cancel()
            proxy.trouble = Trouble.CUT
            await runner.cleanup()


def proxied_kubeconfig(proxy: FaultProxy, folder: Path) -> Path:
    """Write a kubeconfig that leads to a proxy; return its path."""
    file = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{proxy.port}"}}],
        "users": [{"name": "any", "user": {"token": "any"}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "any"}}],
        "current-context": "proxy",
    }
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file
