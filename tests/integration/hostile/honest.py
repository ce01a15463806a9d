"""Honest jobs of three kinds, and the time that it takes to start them."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from tests.builders import make_manifest, termination_message, trainer_spec
from tests.integration.hostile.kind import runs
from tests.integration.hostile.servers import serving
from tests.support.fake_kubelet import end_all, fake_kubelet
from tests.support.kube import ApiRefusal, Namespace, Object, eventually
from trainyard.protocol import constants
from trainyard.protocol.progress import Progress

_SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reporting": {"metrics": {}},
    "trainer": {"trainer": trainer_spec()},
}
_WORKERS = 2
STEPS = 1000


class Honest:
    """Honest jobs in a namespace of their own. All of them serve one page, whose step a test sets."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.step = 1
        self._rounds = itertools.count(1)

    async def start(self) -> tuple[float, list[str]]:
        """Create a job of each kind. Returns the seconds until all of them run, and their names."""
        round_ = next(self._rounds)
        names = [f"{kind}-{round_}" for kind in _SPECS]
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(
            *(
                self.namespace.create_job(make_manifest(name, replicas=_WORKERS, **spec))
                for name, spec in zip(names, _SPECS.values(), strict=True)
            )
        )
        await asyncio.gather(*(self.namespace.has_phase("Running", name, seconds=60) for name in names))
        return loop.time() - started, names

    async def crowd(self, count: int, pause: float) -> list[str]:
        """Create harmless jobs with a pause between them. Returns their names."""
        names = [f"crowd-{number}" for number in range(count)]
        for name in names:
            await self.namespace.create_job(make_manifest(name, replicas=1, metrics={}))
            await asyncio.sleep(pause)
        return names

    async def remove(self, names: list[str]) -> None:
        """Delete jobs and, as the garbage collector would, their pods."""
        for name in names:
            await self.namespace.api.delete(self.namespace.jobs(name))
            with suppress(ApiRefusal):  # not created yet
                await self.namespace.api.delete(self.namespace.core("pods", f"{name}-1-0"), gracePeriodSeconds=0)

    async def shows_step(self, step: int, *names: str, seconds: float) -> None:
        """Let the page show a step, and wait until the status of these jobs has it."""
        self.step = step

        async def check() -> None:
            for name in names:
                status = (await self.namespace.job(name))["status"]
                assert status.get("progress", {}).get("step") == step, f"{name}: {status.get('progress')}"

        await eventually(check, seconds=seconds)

    async def finish(self, names: list[str]) -> list[Object]:
        """Let the workers of jobs succeed. Returns the statuses of the jobs, once all have succeeded."""
        words = termination_message(rank=0, progress=Progress(step=STEPS, total_steps=STEPS, loss=0.5))
        await asyncio.gather(
            *(
                end_all(self.namespace, f"{name}-1-{index}", message="" if index else words)
                for name in names
                for index in range(_WORKERS)
            )
        )
        return await asyncio.gather(*(self.namespace.has_phase("Succeeded", name) for name in names))


@asynccontextmanager
async def honest_jobs(namespace: Namespace) -> AsyncIterator[Honest]:
    """The honest namespace with a kubelet and the page of rank 0."""
    honest = Honest(namespace)
    address = "127.78.0.1"

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = f"trainyard_steps_total {honest.step}\ntrainyard_planned_steps {STEPS}\ntrainyard_loss 0.5\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + text.encode())

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(address, constants.METRICS_PORT, page))
        await stack.enter_async_context(fake_kubelet(namespace, start=lambda _: runs(address)))
        yield honest
