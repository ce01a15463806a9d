"""Leader election: one operator works, and another takes over when it exits, is killed, freezes or loses the lease."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster, Profile, status
from tests.integration.conftest import leave, new_namespace
from tests.support.fake_kubelet import fake_kubelet, recording
from tests.support.kube import Api, Namespace, Object, eventually
from tests.support.operator import OperatorProcess, operating
from trainyard_operator.kube.lease import TIMES

RETRY = TIMES.retry * 1.2


@dataclass
class Pair:
    """Two operators: `leader`, and `other`, which is the standby."""

    namespace: Namespace
    leader: OperatorProcess
    other: OperatorProcess

    @property
    def path(self) -> str:
        """Path of their Lease."""
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace.name}/leases/trainyard"

    async def record(self) -> Object:
        """Return the spec of the Lease."""
        found: Object = (await self.namespace.api.get(self.path))["spec"]
        return found

    async def works(self, name: str, *, seconds: float) -> float:
        """Create a job and return the seconds until an operator runs it."""
        started = time.monotonic()
        await self.namespace.create_job(make_manifest(name, replicas=1))
        await self.namespace.has_phase("Running", name, seconds=seconds)
        return time.monotonic() - started


async def leads(operator: OperatorProcess) -> bool:
    return "\ntrainyard_operator_leader 1.0\n" in (await operator.page("/metrics"))[1]


@asynccontextmanager
async def two_operators(cluster: Cluster, namespace: Namespace, folder: Path) -> AsyncIterator[Pair]:
    """Start two operators and a job; check at the end that nothing was done twice."""

    def environment(name: str) -> dict[str, str]:
        own = {"TRAINYARD_LEASE": f"{namespace.name}/trainyard", "TRAINYARD_WATCH_NAMESPACES": namespace.name}
        return {**cluster.environment, **own, "POD_ID": name}

    async with (
        recording(namespace) as recorder,
        fake_kubelet(namespace),
        operating(environment("one"), folder / "one", ready=False) as one,
        operating(environment("two"), folder / "two", ready=False) as two,
    ):
        await asyncio.gather(one.ready(), two.ready())
        pair = Pair(namespace, one, two)
        await pair.works("job", seconds=30)
        if await leads(two):
            pair.leader, pair.other = two, one
        assert [await leads(pair.leader), await leads(pair.other)] == [True, False]
        assert pair.other.logged(f"the holder of the lease {namespace.name}/trainyard is {pair.leader.log.name}")
        yield pair
        names = sorted(await namespace.pods())
    assert sorted(recorder.created()) == names, "each pod was created once"
    # A new job has the default status of the CRD until an operator has seen it.
    written = [status for status in recorder.statuses if status["observedGeneration"]]
    assert {(status.get("attempt", 1), status.get("restarts", 0)) for status in written} == {(1, 0)}


async def test_the_lease_is_as_kubectl_shows_it(own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path) -> None:
    """The standby has no metrics of jobs."""
    async with two_operators(own_cluster, own_namespace, tmp_path) as pair:
        before = await pair.record()
        assert before["holderIdentity"] == pair.leader.log.name
        assert (before["leaseDurationSeconds"], before["leaseTransitions"]) == (15, 0)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", before["renewTime"])

        async def renewed() -> None:
            after = await pair.record()
            assert after["renewTime"] > before["renewTime"]
            assert after["acquireTime"] == before["acquireTime"]

        await eventually(renewed, seconds=RETRY + 5)
        assert await pair.other.page("/readyz") == (200, "ok\n")
        assert await pair.other.page("/healthz") == (200, "ok\n")
        _, page = await pair.other.page("/metrics")
        assert "trainyard_job_condition{" not in page
        assert 'trainyard_operator_jobs{phase="Running"} 0.0' in page
        shown = own_cluster.run([own_cluster.kubectl, "-n", own_namespace.name, "get", "lease", "trainyard"]).stdout
        assert shown.splitlines()[1].split()[:2] == ["trainyard", pair.leader.log.name]


async def test_a_terminated_leader_releases_the_lease_at_once(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path
) -> None:
    async with two_operators(own_cluster, own_namespace, tmp_path) as pair:
        assert await pair.leader.stop() == 0
        assert pair.leader.logged("released the lease")
        assert await pair.works("later", seconds=RETRY + 5) < 5
        record = await pair.record()
        assert (record["holderIdentity"], record["leaseTransitions"]) == (pair.other.log.name, 1)
        assert await leads(pair.other)


async def test_a_standby_takes_over_from_a_killed_and_from_a_frozen_leader_when_the_lease_expires(
    own_cluster: Cluster, own_api: Api, own_namespace: Namespace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run both at the same time, in a namespace each, since a lease takes 15 s to expire."""
    second, folders = await new_namespace(own_api), tmp_path_factory
    async with asyncio.TaskGroup() as group:
        group.create_task(_takes_over_after(signal.SIGKILL, own_cluster, own_namespace, folders.mktemp("killed")))
        group.create_task(_takes_over_after(signal.SIGSTOP, own_cluster, second, folders.mktemp("frozen")))
    await leave(second)


async def _takes_over_after(number: signal.Signals, cluster: Cluster, namespace: Namespace, folder: Path) -> None:
    async with two_operators(cluster, namespace, folder) as pair:
        pair.leader.process.send_signal(number)
        took = await pair.works("later", seconds=TIMES.duration + RETRY + 5)
        assert took > TIMES.duration / 2, "the other did not wait until the lease had expired"
        assert await leads(pair.other)
        if number == signal.SIGSTOP:
            pair.leader.process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(pair.leader.process.wait, 10) == 1
            await pair.works("last", seconds=10)


async def test_a_leader_whose_lease_was_taken_exits_and_logs_it(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path
) -> None:
    async with two_operators(own_cluster, own_namespace, tmp_path) as pair:
        await own_namespace.api.patch(pair.path, {"spec": {"holderIdentity": pair.other.log.name}})
        assert await asyncio.to_thread(pair.leader.process.wait, RETRY + 5) == 1
        [line] = [line for line in pair.leader.lines if line["level"] in ("error", "critical")]
        words = f"the lease {own_namespace.name}/trainyard was lost: its holder is {pair.other.log.name}"
        assert line["message"] == f"{words}; exiting, to be restarted as a standby replica"
        await pair.works("later", seconds=RETRY + 5)
        assert await leads(pair.other)


async def test_a_leader_without_responses_exits_in_time_and_another_continues_later(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path
) -> None:
    """The API server is stopped, not dead: connections stay open, and all requests hang."""
    found = re.search(r"process (\d+)", status(Profile.CONTROL_PLANE, name=own_cluster.name)["kube-apiserver"])
    assert found
    async with two_operators(own_cluster, own_namespace, tmp_path) as pair:
        os.kill(int(found[1]), signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert await asyncio.to_thread(pair.leader.process.wait, 30) == 1
            took = time.monotonic() - started
        finally:
            os.kill(int(found[1]), signal.SIGCONT)
        # Its work ends after 10 s; then it tries for a moment to release the lease.
        assert TIMES.renew / 2 < took < TIMES.renew + TIMES.request_timeout + 3, took
        assert pair.leader.logged("could not be renewed for 10 s: no response")
        await pair.works("later", seconds=TIMES.duration + 10)
        assert await leads(pair.other)
