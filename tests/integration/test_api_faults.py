"""Trouble with the API server: nothing is lost, doubled or decided twice, and no request is repeated in a loop.

Each operator talks to the same API server through a proxy of its own, which causes trouble by a random schedule with a
fixed seed (`tests/support/fault_proxy.py`). Test and kubelet talk to the API server directly.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import leave, new_namespace
from tests.support import kubelet
from tests.support.fake_kubelet import Recorder, end_all, fake_kubelet, now, recording, report
from tests.support.fault_proxy import FaultProxy, Trouble, fault_proxy, proxied_kubeconfig
from tests.support.kube import Api, Namespace, Object, eventually
from tests.support.operator import OperatorProcess, operating
from trainyard_operator.kube.lease import TIMES

SEEDS = (1, 2, 3)
MORE_SEEDS = ((4, 5, 6), (7, 8, 9), (10, 11, 12))
DEADLINE = 60.0
"""Seconds for one step of a story."""
QUIET = 3.0
"""Seconds after a story in which an operator that has nothing to do is observed."""
PER_FAULT = 3
"""Requests that one failed request may cost beside itself, by retries and by what a repeated reconciliation reads."""


@dataclass
class Life:
    """One job in a namespace of its own."""

    namespace: Namespace
    recorder: Recorder

    async def runs(self, attempt: int, workers: int) -> Object:
        """Wait until all workers of an attempt run, and no other pod exists; return the status."""
        names = [f"job-{attempt}-{index}" for index in range(workers)]
        await self.namespace.has_pods(*names, seconds=DEADLINE)
        status = await self.namespace.has_phase("Running", seconds=DEADLINE)
        assert status["attempt"] == attempt
        return status

    async def restart_suspend_and_succeed(self) -> None:
        """Twice a worker fails and the group restarts; then the job is suspended, resumed and succeeds."""
        await self.namespace.create_job(make_manifest(replicas=3, restartPolicy=AT_ONCE))
        await self.runs(1, 3)
        for attempt in (1, 2):
            failed = kubelet.ended(now(), 1, message="Traceback")
            await report(self.namespace, f"job-{attempt}-{attempt}", failed)
            await self.runs(attempt + 1, 3)
        await self.namespace.edit({"suspend": True})
        await self.namespace.has_phase("Suspended", seconds=DEADLINE)
        assert await self.namespace.pods() == {}
        await self.namespace.edit({"suspend": False})
        await self.runs(4, 3)
        await end_all(self.namespace, *(f"job-4-{index}" for index in range(3)))
        await self.namespace.has_phase("Succeeded", seconds=DEADLINE)

    async def resize_and_lose_a_worker(self) -> None:
        """The number of workers changes twice, and then a node evicts one of them."""
        await self.namespace.create_job(make_manifest(replicas=2, restartPolicy=AT_ONCE))
        await self.runs(1, 2)
        await self.namespace.edit({"workers": {"replicas": 4}})
        await self.runs(2, 4)
        await self.namespace.edit({"workers": {"replicas": 3}})
        await self.runs(3, 3)
        await report(self.namespace, "job-3-2", kubelet.evicted())
        await self.runs(4, 3)

    async def delete(self) -> None:
        """The job is deleted while it runs."""
        await self.namespace.create_job(make_manifest(replicas=3, restartPolicy=AT_ONCE))
        await self.runs(1, 3)
        await self.namespace.api.delete(self.namespace.jobs("job"))
        # What the garbage collector does.
        for name in await self.namespace.pods():
            await self.namespace.api.delete(self.namespace.core("pods", name))
        await self.namespace.has_pods(seconds=DEADLINE)

    def check(self, *, pods: int, attempt: int, restarts: int, counted: int) -> None:
        """Check what the whole life has in common with one without trouble."""
        self.recorder.check_invariants(limit=counted)
        assert len(self.recorder.created()) == pods
        last = self.recorder.statuses[-1]
        figures = [last.get(name, 0) for name in ("attempt", "restarts", "restartsCounted")]
        assert figures == [attempt, restarts, counted]


AT_ONCE = {"backoff": {"initialSeconds": 0}}


@asynccontextmanager
async def lives(api: Api, count: int) -> AsyncIterator[list[Life]]:
    """Namespaces with a kubelet, and with a recorder of all that happens."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            namespace = await new_namespace(api)
            stack.push_async_callback(leave, namespace)
            recorder = await stack.enter_async_context(recording(namespace))
            await stack.enter_async_context(fake_kubelet(namespace))
            found.append(Life(namespace, recorder))
        yield found


def environment(cluster: Cluster, proxy: FaultProxy, folder: Path, *watched: Life) -> dict[str, str]:
    """Return the environment of an operator of some namespaces behind a proxy."""
    folder.mkdir(exist_ok=True)
    own = {"TRAINYARD_WATCH_NAMESPACES": ",".join(life.namespace.name for life in watched)}
    return {**cluster.environment, **own, "KUBECONFIG": str(proxied_kubeconfig(proxy, folder)), "POD_ID": folder.name}


async def forgotten(operator: OperatorProcess, namespace: Namespace) -> None:
    """Wait until an operator has no metrics of the jobs of a namespace."""

    async def check() -> None:
        _, page = await operator.page("/metrics")
        assert f'namespace="{namespace.name}"' not in page

    await eventually(check, seconds=15)


@dataclass
class Cost:
    """What three jobs cost their operator."""

    requests: int
    """Requests besides watches, from the start of the operator until the last job has ended."""
    faults: int
    after: int
    """Requests and watches in the time after that, in which there was nothing to do."""
    seconds: float


async def live(cluster: Cluster, api: Api, folder: Path, seed: int | None) -> Cost:
    """Play the lives of three jobs, and check what must be true of them whatever happens to requests."""
    async with lives(api, 3) as (first, second, third), fault_proxy(cluster.kubeconfig, seed) as proxy:
        variables = environment(cluster, proxy, folder, first, second, third)
        async with operating(variables, folder / "log") as operator:
            started = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(first.restart_suspend_and_succeed())
                group.create_task(second.resize_and_lose_a_worker())
                group.create_task(third.delete())
            seconds = time.monotonic() - started
            proxy.calm()
            await forgotten(operator, third.namespace)
            requests, faults = proxy.requests.total() - proxy.requests["WATCH"], proxy.faults.total()
            before = proxy.requests.total()
            await asyncio.sleep(QUIET)
            after = proxy.requests.total() - before
            assert await operator.page("/healthz") == (200, "ok\n")
            _, page = await operator.page("/metrics")
    failures = [line for line in page.splitlines() if line.startswith("trainyard_operator_part_failures_total{")]
    assert failures
    assert all(line.endswith(" 0.0") for line in failures), failures
    first.check(pods=12, attempt=4, restarts=2, counted=2)
    second.check(pods=12, attempt=4, restarts=3, counted=0)
    third.check(pods=3, attempt=1, restarts=0, counted=0)
    return Cost(requests, faults, after, seconds)


async def live_with(cluster: Cluster, api: Api, folder: Path, seeds: Sequence[int]) -> None:
    """Play the same lives once without trouble and once with each seed, all at the same time."""
    async with asyncio.TaskGroup() as group:
        tasks = {seed: group.create_task(live(cluster, api, folder / f"seed-{seed}", seed)) for seed in (None, *seeds)}
    costs = {seed: task.result() for seed, task in tasks.items()}
    quiet = costs.pop(None)
    print(f"\nwithout trouble: {quiet}")
    for seed, cost in costs.items():
        print(f"seed {seed}: {cost}")
    assert (quiet.faults, quiet.after) == (0, 0)
    for seed, cost in costs.items():
        assert cost.faults > 5, f"seed {seed}: the schedule was too quiet to prove anything: {cost}"
        assert cost.requests <= quiet.requests + PER_FAULT * cost.faults, f"seed {seed}: {cost}, quiet: {quiet}"
        # Watches that were cut are opened again; what is read again is in the metrics already.
        assert cost.after <= 20, f"seed {seed}: {cost}"


async def test_trouble_with_the_api_server_loses_doubles_and_repeats_nothing(
    own_cluster: Cluster, own_api: Api, tmp_path: Path
) -> None:
    await live_with(own_cluster, own_api, tmp_path, SEEDS)


@pytest.mark.extended
@pytest.mark.parametrize("seeds", MORE_SEEDS)
async def test_other_trouble(own_cluster: Cluster, own_api: Api, tmp_path: Path, seeds: Sequence[int]) -> None:
    """Represented by `test_trouble_with_the_api_server_loses_doubles_and_repeats_nothing`."""
    await live_with(own_cluster, own_api, tmp_path, seeds)


async def test_a_job_that_is_deleted_while_its_watch_cannot_continue_is_forgotten(
    own_cluster: Cluster, own_api: Api, tmp_path: Path
) -> None:
    async with (
        lives(own_api, 1) as (life,),
        fault_proxy(own_cluster.kubeconfig) as proxy,
        operating(environment(own_cluster, proxy, tmp_path, life), tmp_path / "log") as operator,
    ):
        await life.namespace.create_job(make_manifest())
        await life.runs(1, 2)
        proxy.trouble = Trouble.SILENCE
        await life.namespace.api.delete(life.namespace.jobs("job"))
        await asyncio.sleep(0.2)  # the proxy has read the event, which must not reach the operator
        proxy.end_watches(Trouble.EXPIRED)
        proxy.trouble = Trouble.NONE
        await forgotten(operator, life.namespace)


SHORT_WATCHES = 4.0
"""Seconds in which each watch ends as soon as it is open."""


async def test_watches_that_end_at_once_are_opened_less_and_less_often(
    own_cluster: Cluster, own_api: Api, tmp_path: Path
) -> None:
    """Those of jobs and of pods, each in its namespace."""
    async with (
        lives(own_api, 1) as (life,),
        fault_proxy(own_cluster.kubeconfig) as proxy,
        operating(environment(own_cluster, proxy, tmp_path, life), tmp_path / "log"),
    ):
        await life.namespace.create_job(make_manifest())
        await life.runs(1, 2)
        proxy.hit, before = 1.0, proxy.requests["WATCH"]
        proxy.trouble = Trouble.CUT
        await asyncio.sleep(SHORT_WATCHES)
        opened = proxy.requests["WATCH"] - before
        proxy.calm()
        await life.namespace.edit({"workers": {"replicas": 3}})
        await life.runs(2, 3)
    # After 0, 0.2, 0.4, 0.8, 1.6 s, each with a jitter of half of it.
    assert opened <= 2 * 7, f"{opened} watches in {SHORT_WATCHES:g} s"


@dataclass
class Replicas:
    """Two operators behind a proxy each."""

    life: Life
    leader: OperatorProcess
    proxy: FaultProxy
    """Between the leader and the API server."""
    other: OperatorProcess

    async def holder(self) -> tuple[str, int]:
        """Return who holds the lease, and how often that has changed."""
        name = self.life.namespace.name
        path = f"/apis/coordination.k8s.io/v1/namespaces/{name}/leases/trainyard"
        record = (await self.life.namespace.api.get(path))["spec"]
        return record["holderIdentity"], record["leaseTransitions"]


@asynccontextmanager
async def replicas(cluster: Cluster, api: Api, folder: Path) -> AsyncIterator[Replicas]:
    """Start two operators with a lease, and a job."""
    async with AsyncExitStack() as stack:
        [life] = await stack.enter_async_context(lives(api, 1))
        proxies, operators = [], []
        for name in ("one", "two"):
            proxies.append(await stack.enter_async_context(fault_proxy(cluster.kubeconfig)))
            variables = environment(cluster, proxies[-1], folder / name, life)
            variables["TRAINYARD_LEASE"] = f"{life.namespace.name}/trainyard"
            starting = operating(variables, folder / name / "log", ready=False)
            operators.append(await stack.enter_async_context(starting))
        await asyncio.gather(*(operator.ready() for operator in operators))
        await life.namespace.create_job(make_manifest(restartPolicy=AT_ONCE))
        await life.runs(1, 2)
        pair = Replicas(life, operators[0], proxies[0], operators[1])
        if (await pair.holder())[0] == "two":
            pair = Replicas(life, operators[1], proxies[1], operators[0])
        yield pair


async def keep_the_lease(cluster: Cluster, api: Api, folder: Path) -> None:
    """Errors, and a silence shorter than ten seconds, cost no lease."""
    async with replicas(cluster, api, folder) as pair:
        before, pair.proxy.hit = await pair.holder(), 1.0
        for trouble in (Trouble.ERROR, Trouble.SILENCE, Trouble.NONE, Trouble.CONFLICT, Trouble.LOST, Trouble.NONE):
            pair.proxy.trouble = trouble
            await asyncio.sleep(3)
        assert pair.leader.process.poll() is None
        assert await pair.holder() == before
        await report(pair.life.namespace, "job-1-0", kubelet.ended(now(), 1, message="Traceback"))
        await pair.life.runs(2, 2)
    pair.life.check(pods=4, attempt=2, restarts=1, counted=1)


async def lose_the_lease(cluster: Cluster, api: Api, folder: Path) -> None:
    """A longer silence ends the leader, and the other operator continues its work."""
    async with replicas(cluster, api, folder) as pair:
        holder, changes = await pair.holder()
        pair.proxy.trouble = Trouble.SILENCE
        started = time.monotonic()
        await report(pair.life.namespace, "job-1-0", kubelet.ended(now(), 1, message="Traceback"))
        ending = asyncio.to_thread(pair.leader.process.wait, TIMES.renew + 10)
        continuing = asyncio.create_task(pair.life.runs(2, 2))
        assert await ending == 1
        took = time.monotonic() - started
        # Its work ends 10 s after its last renewal; then it tries for a moment to release the lease.
        assert TIMES.renew / 2 < took < TIMES.renew + TIMES.request_timeout + 3, f"{took:.1f} s"
        assert pair.leader.logged("could not be renewed for 10 s: no response")
        assert await pair.holder() == (holder, changes), "the other waits until the lease has expired"
        await continuing
        assert await pair.holder() == (pair.other.log.parent.name, changes + 1)
        # What the first one has still sent arrives now.
        pair.proxy.calm()
        await asyncio.sleep(1)
        await pair.life.runs(2, 2)
    pair.life.check(pods=4, attempt=2, restarts=1, counted=1)


async def test_a_silence_costs_the_lease_only_if_it_is_longer_than_its_time_for_renewals(
    own_cluster: Cluster, own_api: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_the_lease(own_cluster, own_api, tmp_path_factory.mktemp("short")))
        group.create_task(lose_the_lease(own_cluster, own_api, tmp_path_factory.mktemp("long")))
