"""What other jobs may do does not make an honest job wait for its first pod.

In each round an honest job is created once while the others are quiet and once while they are not; the medians of all
rounds are compared. Tenths of a second count, so other tests must not run beside these.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import leave, new_namespace
from tests.integration.hostile.gauges import processor_seconds
from tests.integration.hostile.servers import serving, silent
from tests.support import kubelet
from tests.support.fake_kubelet import Recorder, fake_kubelet, now, recording
from tests.support.kube import Api, Namespace, Object, eventually
from tests.support.operator import OperatorProcess, operating
from trainyard.protocol import constants, launcher_protocol

pytestmark = pytest.mark.extended

ROUNDS = 7
SLOWDOWN = 2.0
FLOOR = 0.1
"""Seconds: a quiet time below this counts as this much, since twice of less would measure the machine."""
QUOTA = 20
"""Pods that the quota admits."""
ADDRESS = "127.79.0.1"
"""Address of the pods of the other jobs."""

State = Callable[[], Awaitable[object]]
"""Brings the other jobs into a state."""


class Honest:
    """A namespace in which honest jobs are created one after the other."""

    def __init__(self, namespace: Namespace, recorder: Recorder) -> None:
        self.namespace, self._recorder = namespace, recorder
        self._count = 0

    async def first_pod(self) -> float:
        """Create a job, and return the seconds until its first pod exists."""
        self._count += 1
        name, loop = f"honest-{self._count}", asyncio.get_running_loop()
        started = loop.time()
        await self.namespace.create_job(make_manifest(name, replicas=1))
        while f"{name}-1-0" not in self._recorder.created():
            assert loop.time() - started < 30, f"{name} has no pod"
            await asyncio.sleep(0.002)
        return loop.time() - started


@asynccontextmanager
async def namespaces(api: Api, count: int) -> AsyncIterator[list[Namespace]]:
    """Namespaces for the time of the context."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            found.append(await new_namespace(api))
            stack.push_async_callback(leave, found[-1])
        yield found


@asynccontextmanager
async def serving_jobs(cluster: Cluster, log: Path, *watched: Namespace) -> AsyncIterator[OperatorProcess]:
    """An operator of some namespaces."""
    names = ",".join(namespace.name for namespace in watched)
    async with operating({**cluster.environment, "TRAINYARD_WATCH_NAMESPACES": names}, log) as operator:
        yield operator


async def compare(
    quietly: tuple[State, Honest],
    busily: tuple[State, Honest],
    what: str,
    capsys: pytest.CaptureFixture[str],
    rounds: int = ROUNDS,
) -> None:
    """Measure honest jobs in both states in turns, and compare the medians."""
    states = {"quiet": quietly, "busy": busily}
    found: dict[str, list[float]] = {name: [] for name in states}
    for _ in range(rounds):
        for name, (reach, honest) in states.items():
            await reach()
            found[name].append(await honest.first_pod())
    quiet, busy = median(found["quiet"]), median(found["busy"])
    with capsys.disabled():
        print(f"\n{what}: the first pod after {1000 * busy:.0f} ms, quiet {1000 * quiet:.0f} ms")
    assert busy <= SLOWDOWN * max(quiet, FLOOR), f"{what}: {found}"


async def test_a_job_of_10_000_pods_that_a_quota_refuses(
    own_cluster: Cluster, own_api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        namespaces(own_api, 2) as (mine, other),
        recording(mine) as recorder,
        serving_jobs(own_cluster, tmp_path / "log", mine, other),
    ):
        hard = {"pods": f"{QUOTA}"}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": hard}}
        await own_api.post(other.core("resourcequotas"), quota)
        await other.create_job(make_manifest(replicas=10_000, suspend=True))

        async def quiet() -> None:
            await other.edit({"suspend": True})
            await other.has_phase("Suspended")
            await other.has_pods()
            await set_used(other, "0")
            await pause()

        async def refused() -> None:
            """The group is created until the quota refuses a pod, which is then tried after 0.05, 0.1, 0.2, ... s."""
            await other.edit({"suspend": False})
            await eventually(lambda: all_admitted(other))

        honest = Honest(mine, recorder)
        await honest.first_pod()  # it loads what the first job needs
        await compare((quiet, honest), (refused, honest), "10,000 pods refused by a quota", capsys)
        await other.has_condition("Running", "False", "PodsRefused")


async def set_used(namespace: Namespace, pods: str) -> None:
    """Write what the quota's controller would."""
    counted = {"status": {"hard": {"pods": f"{QUOTA}"}, "used": {"pods": pods}}}
    await namespace.api.patch(namespace.core("resourcequotas", "few", "status"), counted)


async def all_admitted(namespace: Namespace) -> None:
    """Check that as many pods exist as the quota admits."""
    assert len(await namespace.pods()) == QUOTA


async def test_jobs_whose_launchers_accept_connections_and_never_answer(
    own_cluster: Cluster, own_api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 64
    names = [f"swallows-{number}" for number in range(count)]
    async with (
        namespaces(own_api, 2) as (mine, other),
        recording(mine) as recorder,
        serving(ADDRESS, launcher_protocol.LAUNCHER_PORT, silent) as calls,
        fake_kubelet(other, start=lambda _: kubelet.running(now(), ip=ADDRESS)),
        serving_jobs(own_cluster, tmp_path / "log", mine, other),
    ):
        policy = {"inPlace": True}
        manifests = [make_manifest(name, replicas=1, restartPolicy=policy) for name in names]
        await asyncio.gather(*map(other.create_job, manifests))
        await all_run(other, names)
        pods = [f"{name}-1-0" for name in names]

        async def quiet() -> None:
            await asyncio.gather(*(report_ready(other, pod, ready=True) for pod in pods))
            await pause()

        async def unclear() -> None:
            """No pod is ready any more, so each launcher is asked what has happened."""
            before = calls.count
            await asyncio.gather(*(report_ready(other, pod, ready=False) for pod in pods))

            async def check() -> None:
                assert calls.count > before

            await eventually(check)
            await pause()  # the calls hang, for three seconds

        honest = Honest(mine, recorder)
        await honest.first_pod()
        await compare((quiet, honest), (unclear, honest), f"{count} launchers that swallow connections", capsys)
        assert calls.count >= count


async def report_ready(namespace: Namespace, pod: str, *, ready: bool) -> None:
    """Let the worker of a pod run, ready or not."""
    status = kubelet.running(now(), ready=ready, ip=ADDRESS)
    await namespace.api.patch(namespace.core("pods", pod, "status"), {"status": status})


@pytest.mark.parametrize("count", [200, 1000])
async def test_many_running_jobs(
    own_cluster: Cluster, own_api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    """Their pages say something new at each reading. The quiet times are those of an operator without such jobs."""
    names = [f"runs-{number}" for number in range(count)]
    async with (
        namespaces(own_api, 3) as (mine, quiet, crowd),
        recording(mine) as recorder,
        recording(quiet) as quiet_recorder,
        serving(ADDRESS, constants.METRICS_PORT, progress()) as readings,
        fake_kubelet(crowd, start=lambda _: kubelet.running(now(), ip=ADDRESS)),
        serving_jobs(own_cluster, tmp_path / "quiet", quiet),
        serving_jobs(own_cluster, tmp_path / "busy", mine, crowd) as operator,
    ):
        for start in range(0, count, 50):
            manifests = [make_manifest(name, replicas=1, metrics={}) for name in names[start : start + 50]]
            await asyncio.gather(*map(crowd.create_job, manifests))
        await all_run(crowd, names, progress=True)
        busy, calm = Honest(mine, recorder), Honest(quiet, quiet_recorder)
        await busy.first_pod()
        await calm.first_pod()
        loop = asyncio.get_running_loop()
        before, cpu, started = readings.count, processor_seconds(operator), loop.time()
        # A thousand jobs keep this machine so busy that single times differ much.
        rounds = ROUNDS if count < 1000 else 3 * ROUNDS
        await compare((pause, calm), (pause, busy), f"{count} running jobs", capsys, rounds)
        seconds = loop.time() - started
        share, pages = (processor_seconds(operator) - cpu) / seconds, (readings.count - before) / seconds
    with capsys.disabled():
        print(f"the operator has used {share:.0%} of a processor and read {pages:.0f} pages per second")
    assert pages > 0


async def pause() -> None:
    """Let the operator finish what it has to do."""
    await asyncio.sleep(0.5)


async def all_run(namespace: Namespace, names: Sequence[str], *, progress: bool = False) -> None:
    """Wait until all workers of jobs run, and if asked for until each status has progress."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 240
    while loop.time() < deadline:
        jobs: list[Object] = (await namespace.api.get(namespace.jobs()))["items"]
        statuses = [job.get("status", {}) for job in jobs]
        running = [status for status in statuses if status.get("phase") == "Running"]
        if sum("progress" in status or not progress for status in running) == len(names):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("not all jobs run")


def progress() -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return a metrics page whose step grows with each reading."""
    step = 0

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal step
        step += 1
        await reader.readuntil(b"\r\n\r\n")
        text = f"trainyard_steps_total {step}\ntrainyard_planned_steps 1000000000\ntrainyard_loss 0.5\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + text.encode())

    return page
