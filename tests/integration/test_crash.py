"""kill -9 at any moment loses nothing: what counts is written down before it is acted upon."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.support import kubelet
from tests.support.fake_cluster import identity
from tests.support.fake_kubelet import Recorder, end_all, fake_kubelet, now, recording, report
from tests.support.kube import ApiRefusal, Namespace, Object, eventually
from tests.support.operator import Nursery, operating

KILLS = 25
MANY = 200


@pytest.fixture
def nursery(own_cluster: Cluster, tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(own_cluster.environment, tmp_path / "log")
    try:
        yield nursery
    finally:
        nursery.close()


async def all_created(recorder: Recorder, count: int) -> None:
    async def check() -> None:
        assert len(recorder.created()) >= count, f"{len(recorder.created())} of {count} pods"

    await eventually(check, seconds=60)


async def test_a_crash_in_the_middle_of_creating_many_pods_doubles_and_forgets_none(
    nursery: Nursery, own_namespace: Namespace
) -> None:
    names = {f"job-1-{index}" for index in range(MANY)}
    async with recording(own_namespace) as recorder:
        await own_namespace.create_job(make_manifest(replicas=MANY))
        async with nursery.operator():
            await all_created(recorder, 20)
        killed_at = len(await own_namespace.pods())
        assert 20 <= killed_at < MANY, "the operator was not killed in the middle"
        async with nursery.operator():
            await own_namespace.has_pods(*names, seconds=60)
            status = await own_namespace.has_phase("Pending")
    recorder.check_invariants(limit=0)
    assert sorted(recorder.created()) == sorted(names)
    assert (status["attempt"], status["restarts"]) == (1, 0)


async def test_pods_of_one_job_are_created_faster_than_others_create_theirs(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with operating(own_cluster.environment, tmp_path / "log"), recording(own_namespace) as recorder:
        await own_namespace.create_job(make_manifest("warm", replicas=1))
        await all_created(recorder, 1)
        template = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "x"}]}}
        started, serial = time.monotonic(), 40
        for index in range(serial):
            await own_namespace.api.post(
                own_namespace.core("pods"), {**template, "metadata": {"name": f"serial-{index}"}}
            )
        one_by_one = serial / (time.monotonic() - started)
        await all_created(recorder, 1 + serial)
        started = time.monotonic()
        await own_namespace.create_job(make_manifest(replicas=MANY))
        await all_created(recorder, 1 + serial + MANY)
        together = MANY / (time.monotonic() - started)
    with capsys.disabled():
        print(f"\n{MANY} pods of one job: {together:.0f} pods/s, one after another: {one_by_one:.0f} pods/s")
    # Others create one after another, or at most 20 per second. On a busy machine all requests wait for the same
    # processor, so how much is gained by parallel requests is proved in tests/unit/test_kube_api.py.
    assert together > min(20, one_by_one)


class Chaos:
    """A cluster and a user in which much goes wrong, by a seed."""

    def __init__(self, namespace: Namespace, seed: int) -> None:
        self.namespace, self.dice = namespace, random.Random(seed)
        self.failed: set[int] = set()

    async def act(self) -> None:
        """One misfortune, or a change of mind."""
        with suppress(ApiRefusal):
            await self.dice.choice([self._fail, self._fail, self._evict, self._scale, self._suspend, self._resume])()

    async def _running_pod(self) -> Object | None:
        pods = [p for p in (await self.namespace.pods()).values() if p["status"]["phase"] == "Running"]
        return self.dice.choice(pods) if pods else None

    async def _fail(self) -> None:
        if pod := await self._running_pod():
            self.failed.add(identity(pod)[0])
            await report(self.namespace, pod["metadata"]["name"], kubelet.ended(now(), 1, message="Traceback"))

    async def _evict(self) -> None:
        if pod := await self._running_pod():
            await report(self.namespace, pod["metadata"]["name"], kubelet.evicted())

    async def _scale(self) -> None:
        await self.namespace.edit({"workers": {"replicas": self.dice.randint(1, 5)}})

    async def _suspend(self) -> None:
        await self.namespace.edit({"suspend": True})

    async def _resume(self) -> None:
        await self.namespace.edit({"suspend": False})


async def test_a_job_survives_an_operator_that_is_killed_at_any_moment_of_its_life(
    nursery: Nursery, own_namespace: Namespace
) -> None:
    seed = 20300101
    dice, chaos = random.Random(seed), Chaos(own_namespace, seed)
    policy = {"maxRestarts": 1000, "backoff": {"initialSeconds": 0}}
    async with recording(own_namespace) as recorder, fake_kubelet(own_namespace):
        await own_namespace.create_job(make_manifest(replicas=4, restartPolicy=policy))
        for _ in range(KILLS):
            async with nursery.operator():
                alive = dice.uniform(0.1, 1.0)
                for _ in range(3):
                    await asyncio.sleep(alive / 3)  # the moment of the kill is the point
                    await chaos.act()
        await own_namespace.edit({"suspend": False})
        async with nursery.operator():

            async def finish() -> None:
                """Let running workers succeed until the job has succeeded."""
                pods = (await own_namespace.pods()).items()
                running = [name for name, pod in pods if pod["status"]["phase"] == "Running"]
                with suppress(ApiRefusal):
                    await end_all(own_namespace, *running)
                phase = (await own_namespace.job())["status"]["phase"]
                assert phase == "Succeeded", phase

            await eventually(finish, seconds=60)
    recorder.check_invariants(limit=1000)
    status = (await own_namespace.job())["status"]
    assert status["attempt"] > 5, "the life was too quiet to prove anything"
    assert 0 < status["restartsCounted"] <= len(chaos.failed), "a restart was charged twice, or for nothing"
