"""Measurements on a simulated cluster: one job, many jobs, a failure, and bare pods as the limit."""

import asyncio
import itertools
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.builders import make_job, make_manifest
from tests.support import kubelet
from tests.support.kube import Api, ApiRefusal, Namespace, eventually
from tests.support.operator import OperatorProcess
from trainyard.time import utc_now
from trainyard_operator.manifests.pod import build_pod

IN_FLIGHT = 50
"""Requests in flight of the limit, as the operator has for one job."""
SETTLE = 5.0
"""Seconds before a measurement in which scheduler and nodes finish with the pods of the one before."""
PATIENCE = 600.0
"""Seconds until a measurement is given up."""
_numbers = itertools.count(1)
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What an operator has used and sent."""

    cpu: float
    """Seconds of CPU time."""
    rss: float
    """Resident memory at the end, in MB."""
    status_writes: int
    deletions: int


class Bare(NamedTuple):
    """Pods that a plain client has created, in seconds from the first request."""

    exist: float
    run: float


class OneJob(NamedTuple):
    """One job, in seconds from its creation."""

    exist: float
    """Until all of its pods exist."""
    scheduled: float
    """Until all of its pods run: what the scheduler takes."""
    running: float
    """Until its condition Running is True."""
    cost: Cost


class ManyJobs(NamedTuple):
    """Many small jobs, in seconds from the first request."""

    running: float
    """Until the last one has the condition Running."""
    exist: float
    """Until all pods exist."""
    scheduled: float
    """Until the last pod runs."""
    cost: Cost


class Crash(NamedTuple):
    """A failure, in seconds from it."""

    recovered: float
    """Until the condition Running is True again."""
    gone: float
    """Until the last pod of the attempt before is gone."""
    exist: float
    """Until all pods of the next attempt exist."""
    scheduled: float
    """Until all of them run."""
    deletions: int


@dataclass
class Seen:
    """What the watches of a namespace have shown, with the time of each first sight."""

    added: dict[str, float] = field(default_factory=dict)
    ran: dict[str, float] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    jobs: dict[tuple[str, int], float] = field(default_factory=dict)
    """When a job had the condition Running, by name and attempt."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    """What has ended a watch too early."""

    def see_pod(self, kind: str, pod: dict[str, Any]) -> None:
        """Note a change of a pod."""
        name = pod["metadata"]["name"]
        if kind == "ADDED":
            self.added.setdefault(name, time.monotonic())
        if kind == "DELETED":
            self.gone.setdefault(name, time.monotonic())
        if pod.get("status", {}).get("phase") == "Running":
            self.ran.setdefault(name, time.monotonic())
        self.changed.set()

    def see_job(self, _: str, job: dict[str, Any]) -> None:
        """Note a change of a job."""
        status = job.get("status") or {}
        if any(c["type"] == "Running" and c["status"] == "True" for c in status.get("conditions") or ()):
            self.jobs.setdefault((job["metadata"]["name"], status["attempt"]), time.monotonic())
        self.changed.set()

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until something has been seen.

        Raises:
            TimeoutError: it was not within `PATIENCE`.
        """
        async with asyncio.timeout(PATIENCE):
            while not done():
                if self.failure is not None:
                    raise self.failure
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def watched(api: Api) -> AsyncIterator[tuple[Namespace, Seen]]:
    """A new namespace whose pods and jobs are watched; they are deleted at the end."""
    name, seen = f"bench-{next(_numbers)}-{os.getpid()}", Seen()
    await api.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    namespace = Namespace(api, name)

    async def follow(path: str, see: Callable[[str, dict[str, Any]], None]) -> None:
        version = (await api.get(path, limit="1"))["metadata"]["resourceVersion"]
        started.release()
        try:
            async for kind, body in api.watch(path, version):
                see(kind, body)
        except (ApiRefusal, aiohttp.ClientError) as error:
            seen.failure = error
            seen.changed.set()

    started = asyncio.Semaphore(0)
    tasks = [
        asyncio.create_task(follow(namespace.core("pods"), seen.see_pod)),
        asyncio.create_task(follow(namespace.jobs(), seen.see_job)),
    ]
    try:
        for _ in tasks:
            await started.acquire()
        await asyncio.sleep(SETTLE)
        yield namespace, seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _clear(namespace)


async def _clear(namespace: Namespace) -> None:
    """Delete jobs and pods: no garbage collector runs."""
    await namespace.api.delete(namespace.jobs())

    async def check() -> None:
        await namespace.api.delete(namespace.core("pods"), gracePeriodSeconds=0)
        left = (await namespace.api.get(namespace.core("pods"), limit="1"))["items"]
        assert left == []

    await eventually(check, seconds=120)


async def in_flight(requests: Iterable[Coroutine[Any, Any, object]], most: int = IN_FLIGHT) -> None:
    """Send requests, so many at a time."""
    remaining = iter(requests)

    async def work() -> None:
        for request in remaining:
            await request

    await asyncio.gather(*(work() for _ in range(most)))


# --- the limit ------------------------------------------------------------------------------------------------


async def bare_pods(api: Api, count: int) -> Bare:
    """Create the pods of a job by a plain client, without a job."""
    async with watched(api) as (namespace, seen):
        job = make_job(replicas=count)
        job = job.replace(metadata=job.metadata.model_copy(update={"namespace": namespace.name}))
        pods = [_without_owner(build_pod(job, 1, index, trainer_image="")) for index in range(count)]
        started = time.monotonic()
        await in_flight(api.post(namespace.core("pods"), pod) for pod in pods)
        await seen.until(lambda: len(seen.added) == count)
        await seen.until(lambda: len(seen.ran) == count)
        return Bare(max(seen.added.values()) - started, max(seen.ran.values()) - started)


def _without_owner(pod: dict[str, Any]) -> dict[str, Any]:
    del pod["metadata"]["ownerReferences"]
    return pod


# --- the operator ---------------------------------------------------------------------------------------------


class Meter:
    """Measures one operator process."""

    def __init__(self, operator: OperatorProcess) -> None:
        self._operator = operator
        self._cpu, self._patches, self._deletions = 0.0, 0, 0

    async def start(self) -> None:
        """Begin a measurement."""
        self._cpu = self._seconds()
        self._patches, self._deletions = await self._requests("PATCH"), await self._requests("DELETE")

    async def stop(self) -> Cost:
        """End it."""
        return Cost(
            self._seconds() - self._cpu,
            self._megabytes(),
            await self._requests("PATCH") - self._patches,
            await self._requests("DELETE") - self._deletions,
        )

    def _seconds(self) -> float:
        fields = Path(f"/proc/{self._operator.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _megabytes(self) -> float:
        status = Path(f"/proc/{self._operator.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6

    async def _requests(self, verb: str) -> int:
        _, page = await self._operator.page("/metrics")
        found = re.findall(rf'trainyard_operator_api_requests_total{{.*verb="{verb}".*}} (\S+)', page)
        return sum(int(float(value)) for value in found)


async def one_job(api: Api, operator: OperatorProcess, count: int) -> OneJob:
    """Create one job, and wait until it runs."""
    meter = Meter(operator)
    async with watched(api) as (namespace, seen):
        await meter.start()
        started = time.monotonic()
        await namespace.create_job(make_manifest(replicas=count))
        await seen.until(lambda: ("job", 1) in seen.jobs)
        cost = await meter.stop()
        assert (len(seen.added), len(seen.ran)) == (count, count), "each pod was created once"
        exist, run = (max(times.values()) - started for times in (seen.added, seen.ran))
        return OneJob(exist, run, seen.jobs["job", 1] - started, cost)


async def many_jobs(api: Api, operator: OperatorProcess, count: int, replicas: int) -> ManyJobs:
    """Create many small jobs, and wait until all run."""
    meter = Meter(operator)
    async with watched(api) as (namespace, seen):
        await meter.start()
        started = time.monotonic()
        manifests = [make_manifest(f"job-{number}", replicas=replicas) for number in range(count)]
        await in_flight(namespace.create_job(manifest) for manifest in manifests)
        await seen.until(lambda: len(seen.jobs) == count)
        cost = await meter.stop()
        running, exist, ran = (max(times.values()) - started for times in (seen.jobs, seen.added, seen.ran))
        return ManyJobs(running, exist, ran, cost)


async def crash(api: Api, operator: OperatorProcess, count: int) -> Crash:
    """Let one pod of a running group fail, and wait until the group runs again.

    The job asks for no waiting time before its first restart, which is a second by default.
    """
    meter = Meter(operator)
    async with watched(api) as (namespace, seen):
        await namespace.create_job(make_manifest(replicas=count, restartPolicy={"backoff": {"initialSeconds": 0}}))
        await seen.until(lambda: ("job", 1) in seen.jobs)
        await asyncio.sleep(2)
        await meter.start()
        started = time.monotonic()
        status = kubelet.ended(utc_now(), 1)
        await api.patch(namespace.core("pods", f"job-1-{count // 2}", "status"), {"status": status})
        await seen.until(lambda: ("job", 2) in seen.jobs)
        recovered, deletions = seen.jobs["job", 2] - started, (await meter.stop()).deletions
        gone, exist, ran = (max(times.values()) - started for times in (seen.gone, seen.added, seen.ran))
        return Crash(recovered, gone, exist, ran, deletions)
