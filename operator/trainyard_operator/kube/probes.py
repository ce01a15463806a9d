"""The operator's HTTP server: /healthz, /readyz and /metrics."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.lease import Lease
from trainyard_operator.kube.resync import Resync

STALLED = 120.0
"""Seconds without progress after which the work queue counts as stalled: longer than any request timeout."""


@dataclass(slots=True)
class Health:
    """Liveness and readiness of the operator."""

    cache: Cache
    queue: WorkQueue[Key]
    resync: Resync
    lease: Lease | None = None

    @property
    def ready(self) -> bool:
        """Whether the cache is filled, or another operator is the leader: a rolling update waits for either."""
        return self.cache.primed or (self.lease is not None and self.lease.is_standby)

    def problems(self) -> list[str]:
        """Return the reasons why the liveness probe fails; empty if it passes."""
        problems = []
        if (stalled := self.queue.stalled_seconds()) > STALLED:
            problems.append(f"the work queue has been stalled for {stalled:.0f} s")
        if self.resync.watch_lost:
            problems.append("a watch stream is stalled: a complete list contained changes that it never delivered")
        return problems


@asynccontextmanager
async def serve(health: Health, registry: CollectorRegistry, port: int) -> AsyncIterator[int]:
    """Serve until the context ends; yield the port, a free one if `port` is 0."""

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        return web.Response(text="\n".join(problems or ["ok"]) + "\n", status=503 if problems else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready = health.ready
        return web.Response(text="ok\n" if ready else "the cache is not filled yet\n", status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, _listen(port)).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _listen(port: int) -> socket.socket:
    """Return one socket for IPv4 and IPv6, so that both have the same port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
