"""Queues with a real Kueue: its manager with the integration pod, beside a real API server and scheduler."""

import asyncio
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.builders import make_manifest, served, trainer_spec
from tests.cluster import Cluster
from tests.integration.conftest import chart_operator
from tests.support.controllers import controllers
from tests.support.fake_kubelet import recording
from tests.support.fake_nodes import all_bound, bound_pods_run, kube_scheduler, needs_gangs, nodes
from tests.support.kube import Namespace, Object, eventually
from tests.support.kueue import MANAGED, create, describe, kueue, make_queue, workloads

pytestmark = [pytest.mark.extended, pytest.mark.usefixtures("queues")]
"""Kueue is compiled for some minutes the first time. In each change test_scheduling.py plays Kueue."""

ONE_CPU = {"requests": {"cpu": 1}}
QUEUED: dict[str, Any] = {"scheduling": {"queue": "research"}, "workers": {"resources": ONE_CPU}}
"""Two workers with a CPU each wait in a queue."""
COLLECTORS = ("garbage-collector-controller", "pod-garbage-collector-controller")
QUICK = {"maxRestarts": 1, "backoff": {"initialSeconds": 0}}


@pytest.fixture(scope="module")
def queues(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The other cluster with Kueue, a scheduler, the garbage collectors, and the operator of the chart."""
    folder = tmp_path_factory.mktemp("queues")
    with (
        kube_scheduler(own_cluster, folder / "scheduler"),
        controllers(own_cluster, folder / "controllers", *COLLECTORS),
        kueue(own_cluster, folder / "kueue"),
        chart_operator(own_cluster, folder),
    ):
        yield


@pytest.fixture
async def queued(own_namespace: Namespace) -> Namespace:
    """A namespace whose pods Kueue manages. Each has nodes of its own: Kueue keeps pods on them for a while."""
    await own_namespace.api.patch(f"/api/v1/namespaces/{own_namespace.name}", {"metadata": {"labels": MANAGED}})
    return own_namespace


def holders(pods: Iterable[tuple[str, Object]]) -> Iterable[set[str]]:
    """Yield the groups with pods that have a node and have not ended, after each event of a pod."""
    alive: dict[str, str] = {}
    for kind, pod in pods:
        name = pod["metadata"]["name"]
        ended = kind == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed")
        if pod["spec"].get("nodeName") and not ended:
            alive[name] = name.rpartition("-")[0]
        else:
            alive.pop(name, None)
        yield set(alive.values())


async def test_a_job_waits_until_another_gives_its_quota_back(queued: Namespace) -> None:
    await make_queue(queued, cpus=2)
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest("first", **QUEUED))
        await queued.has_phase("Running", "first")
        await queued.create_job(make_manifest(**QUEUED))
        condition = await queued.has_condition("Running", "False", "Queued")
        assert "waits in the queue research" in condition["message"]
        assert set(pods.bound) == {"first-1"}
        await pods.end("first-1")
        await queued.has_phase("Succeeded", "first")
        await queued.has_phase("Running")
        # The quota of a job that has finished is free, although its pods still exist.
        assert {"first-1-0", "first-1-1"} <= set(await queued.pods())
        await pods.end("job-1")
        await queued.has_phase("Succeeded")


async def test_two_jobs_that_each_need_the_whole_quota_run_one_after_the_other(queued: Namespace) -> None:
    """Each round has a queue of its own, in which two jobs arrive at random moments."""
    chance, rounds, workers = random.Random(15), 20, 4
    pairs = [(f"a{number}", f"b{number}") for number in range(rounds)]

    async def arrive(name: str, number: int) -> None:
        await asyncio.sleep(0.3 * chance.random())
        fields = {**QUEUED, "scheduling": {"queue": f"q{number}"}}
        await queued.create_job(make_manifest(name, replicas=workers, **fields))

    for number in range(rounds):
        await make_queue(queued, f"q{number}", cpus=workers)
    machines: list[tuple[str, int, dict[str, str]]] = [
        (f"{queued.name}-{number}", 2 * workers, {}) for number in range(rounds)
    ]
    async with nodes(queued.api, *machines), bound_pods_run(queued, workers), recording(queued) as recorder:
        await asyncio.gather(*(arrive(name, number) for number, pair in enumerate(pairs) for name in pair))
        for name in (name for pair in pairs for name in pair):
            status = await queued.has_phase("Succeeded", name, seconds=180)
            assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    seen = list(holders(recorder.pod_events))
    assert set().union(*seen) == {f"{name}-1" for pair in pairs for name in pair}
    for first, second in pairs:
        assert not any({f"{first}-1", f"{second}-1"} <= groups for groups in seen), "quota was given away twice"


async def test_a_preemption_spends_no_restart_and_waits_for_the_last_pod(queued: Namespace) -> None:
    high = {"metadata": {"name": f"{queued.name}-high"}, "value": 1000}
    head = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    await queued.api.post("/apis/scheduling.k8s.io/v1/priorityclasses", {**head, **high})
    await make_queue(queued, cpus=2)
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest(**QUEUED, restartPolicy={"maxRestarts": 0}))
        await queued.has_phase("Running")
        pods.stubborn = True
        urgent = {**QUEUED, "scheduling": {"queue": "research", "priorityClassName": f"{queued.name}-high"}}
        await queued.create_job(make_manifest("urgent", **urgent))
        status = await queued.has_phase("Restarting")
        assert (status["restartsCounted"], status["disruptions"]) == (0, 1)
        assert status["lastFailure"]["reason"] == "WorkloadEvictedDueToPreempted"
        assert "Preempted to accommodate a workload" in status["lastFailure"]["message"]
        # The pods of the job that was preempted still save their checkpoint.
        await asyncio.sleep(3)
        assert set(pods.bound) == {"job-1"}, "the quota was given away while pods of its job run"
        await pods.let_go()
        await queued.has_phase("Running", "urgent")
        await queued.has_condition("Running", "False", "Queued")
        assert set(pods.bound) == {"job-1", "urgent-1"}
        await pods.end("urgent-1")
        status = await queued.has_phase("Running")
        assert (status["attempt"], status["restartsCounted"], status["disruptions"]) == (2, 0, 1)


async def test_a_suspended_job_keeps_its_quota_until_its_last_pod_is_gone(queued: Namespace) -> None:
    await make_queue(queued, cpus=2)
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest(**QUEUED))
        await queued.has_phase("Running")
        await queued.create_job(make_manifest("next", **QUEUED))
        pods.stubborn = True
        await queued.edit({"suspend": True})
        await queued.has_phase("Suspending")
        await asyncio.sleep(3)
        assert set(pods.bound) == {"job-1"}, "the quota was given away while pods of its job run"
        await pods.let_go()
        await queued.has_phase("Suspended")
        await queued.has_phase("Running", "next")
        # It waits in the queue again, and can be suspended there.
        await queued.edit({"suspend": False})
        await queued.has_condition("Running", "False", "Queued")
        await queued.edit({"suspend": True})
        await queued.has_phase("Suspended", seconds=60)
        assert set(pods.bound) == {"job-1", "next-1"}
        await pods.end("next-1")
        await queued.edit({"suspend": False})
        status = await queued.has_phase("Running")
        assert (status["restarts"], status["disruptions"]) == (0, 0)


async def test_a_restart_gives_the_quota_back_first(queued: Namespace) -> None:
    await make_queue(queued, cpus=2)
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest(**QUEUED, restartPolicy=QUICK))
        await queued.has_phase("Running")
        await pods.end("job-1", "job-1-0", code=1)
        status = await queued.has_phase("Restarting")
        assert status["lastFailure"]["pod"] == "job-1-0"
        status = await queued.has_phase("Running", seconds=60)
        assert set(pods.bound) == {"job-1", "job-2"}
        assert (status["attempt"], status["restartsCounted"]) == (2, 1)
        await pods.end("job-2", code=1)
        await queued.has_phase("Failed")

        async def released() -> None:
            found = await workloads(queued)
            finished = {c["type"] for w in found.values() for c in w["status"]["conditions"] if c["status"] == "True"}
            assert "Finished" in finished, [describe(w) for w in found.values()]

        await eventually(released)
        await queued.create_job(make_manifest("next", **QUEUED))
        await queued.has_phase("Running", "next")


async def test_a_job_that_is_deleted_gives_its_quota_back(queued: Namespace) -> None:
    await make_queue(queued, cpus=2)
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest("first", **QUEUED))
        await queued.has_phase("Running", "first")
        await queued.create_job(make_manifest(**QUEUED))
        await queued.has_condition("Running", "False", "Queued")
        pods.stubborn = True
        await queued.api.delete(queued.jobs("first"), propagationPolicy="Background")
        await asyncio.sleep(3)
        assert set(pods.bound) == {"first-1"}, "the quota was given away while pods of its job run"
        await pods.let_go()
        await queued.has_phase("Running", seconds=60)
        await queued.has_pods("job-1-0", "job-1-1")


async def test_the_parameter_server_is_in_the_group(queued: Namespace) -> None:
    """It needs more CPUs than a worker, so Kueue sees two roles."""
    await make_queue(queued, cpus=4)
    server: dict[str, Any] = {"parameterServer": {"resources": {"requests": {"cpu": 2}}}}
    async with nodes(queued.api, (queued.name, 8, {})), bound_pods_run(queued, 3, ends=False):
        await queued.create_job(make_manifest(**QUEUED, **served(), **server))
        await queued.has_phase("Running")
        [workload] = (await workloads(queued)).values()
        assert sorted(role["count"] for role in workload["spec"]["podSets"]) == [1, 2]


async def test_a_group_in_a_queue_has_its_gang_scheduler(own_cluster: Cluster, queued: Namespace) -> None:
    """Kueue, whose libraries are older than the field, keeps it; the nodes have less capacity than the quota allows."""
    needs_gangs(own_cluster)
    await make_queue(queued, cpus=4)
    scheduling = {"queue": "research", "gang": "native"}
    async with nodes(queued.api, (queued.name, 3, {})), bound_pods_run(queued, 2, ends=False) as pods:
        await queued.create_job(make_manifest("first", **QUEUED | {"scheduling": scheduling}))
        await queued.has_phase("Running", "first")
        await queued.create_job(make_manifest(**QUEUED | {"scheduling": scheduling}))
        condition = await queued.has_condition("Running", "False", "Unschedulable")
        assert "2 of 2 workers" in condition["message"]
        assert set(pods.bound) == {"first-1"}, "a part of a group got nodes"
        assert (await queued.pods())["job-1-0"]["spec"]["schedulingGroup"] == {"podGroupName": "job-1"}
        await pods.end("first-1")
        await queued.has_phase("Running")


async def test_a_queue_that_does_not_exist_is_a_condition_until_it_is_created(queued: Namespace) -> None:
    await queued.create_job(make_manifest(**QUEUED))
    condition = await queued.has_condition("Running", "False", "QueueUnavailable")
    assert f"the namespace {queued.name} has no LocalQueue research; create it" in condition["message"]
    await make_queue(queued, cpus=2)
    await queued.has_condition("Running", "False", "Unschedulable", seconds=90)


async def test_a_namespace_that_kueue_does_not_manage_is_a_condition(own_namespace: Namespace) -> None:
    await make_queue(own_namespace, cpus=2)
    await own_namespace.create_job(make_manifest(**QUEUED))
    condition = await own_namespace.has_condition("Running", "False", "QueueUnavailable")
    assert "let its managedJobsNamespaceSelector include the namespace" in condition["message"]


async def test_kueue_places_the_workers_that_talk_most_in_one_rack(queued: Namespace) -> None:
    """Racks of three nodes and domains of two workers: without the request they would be divided."""
    levels = [{"nodeLabel": "rack"}, {"nodeLabel": "kubernetes.io/hostname"}]
    await create(queued.api, "Topology", {"name": queued.name}, {"levels": levels})
    await make_queue(queued, cpus=8, topologyName=queued.name, nodeLabels={"tas": queued.name})
    racks = {f"{queued.name}-{number}": "ab"[number % 2] for number in range(6)}
    machines = [(name, 1, {"rack": rack, "tas": queued.name}) for name, rack in racks.items()]
    spec: dict[str, Any] = {
        "trainer": trainer_spec(batch={"global": 16}),
        "parallelism": {"data": {"mode": "fsdp"}, "tensor": 2},
        "workers": {"resources": ONE_CPU, "procsPerWorker": 1},
        "scheduling": {"queue": "research", "topologyKey": "rack"},
    }
    async with nodes(queued.api, *machines), bound_pods_run(queued, 4, ends=False):
        await queued.create_job(make_manifest(replicas=4, **spec))
        found = await all_bound(queued, *(f"job-1-{index}" for index in range(4)))
    for first in (0, 2):
        assert len({racks[found[f"job-1-{index}"]] for index in (first, first + 1)}) == 1, found
