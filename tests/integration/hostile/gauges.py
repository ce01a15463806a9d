"""What is measured of an operator and of etcd while hostile jobs run."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.cluster import Cluster
from tests.support.operator import OperatorProcess

PROBE_SECONDS = 1.0
"""Period and timeout of the liveness probe; the kubelet's have 10 s and 1 s, so that this one is stricter."""
PROBE_FAILURES = 3
"""Failures in a row after which the kubelet restarts a container."""


class Etcd:
    """What etcd has written.

    The sum of the sizes of all keys and values put is measured and not the size of the database: the latter grows in
    pages, keeps the space of what was deleted, and shrinks when the API server compacts the history every five minutes.
    """

    def __init__(self, cluster: Cluster) -> None:
        port = (cluster.kubeconfig.parent / "ports").read_text().split()[1]
        self._url = f"http://127.0.0.1:{port}/metrics"

    async def bytes_written(self) -> float:
        """Return the bytes of all keys and values put since etcd was started."""
        async with aiohttp.request("GET", self._url) as response:
            text = await response.text()
        found = re.search(r"^etcd_(?:debugging_)?mvcc_total_put_size_in_bytes (\S+)$", text, re.MULTILINE)
        assert found, "etcd does not count the bytes put"
        return float(found[1])


@dataclass
class Liveness:
    """The liveness probe's results."""

    slowest: float = 0.0
    failures_in_a_row: int = 0
    worst: int = 0
    """Largest number of failures in a row."""
    answers: list[str] = field(default_factory=list)
    """Answers other than ok."""


@asynccontextmanager
async def probing(operator: OperatorProcess) -> AsyncIterator[Liveness]:
    """Probe /healthz as a kubelet does, until the context ends."""
    liveness = Liveness()

    async def probe() -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    code, text = await operator.page("/healthz")
            except (TimeoutError, aiohttp.ClientError) as error:
                code, text = 0, f"{type(error).__name__}: {error}"
            took = loop.time() - started
            liveness.slowest = max(liveness.slowest, took)
            liveness.failures_in_a_row = 0 if code == 200 else liveness.failures_in_a_row + 1
            liveness.worst = max(liveness.worst, liveness.failures_in_a_row)
            if code != 200:
                liveness.answers.append(f"{code} {text.strip()}")
            await asyncio.sleep(max(0.0, PROBE_SECONDS - took))

    task = asyncio.create_task(probe())
    try:
        yield liveness
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def peak_memory(operator: OperatorProcess) -> int:
    """Return the most memory in bytes that the operator has used; 0 if it has ended."""
    try:
        status = Path(f"/proc/{operator.process.pid}/status").read_text()
    except FileNotFoundError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def processor_seconds(operator: OperatorProcess) -> float:
    """Return the processor time in seconds that the operator has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(") ")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
