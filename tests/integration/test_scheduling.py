"""Gangs, queues and topology domains with the API server and the scheduler of the cluster's version.

Nodes are objects without machines. Kueue is played: the tests do what its documentation says that it does.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.cluster import Cluster
from tests.integration.conftest import chart_environment, chart_operator, install_crd
from tests.support import kubelet
from tests.support.fake_kubelet import finish_deletion, now, run_all
from tests.support.fake_nodes import all_bound, bound_pods_run, kube_scheduler, needs_gangs, nodes
from tests.support.kube import Api, ApiRefusal, Namespace, eventually
from tests.support.operator import operating
from tests.support.scheduler_crds import GANG_CRDS, LOCAL_QUEUES
from tests.support.two_jobs import ONE_CPU, first_attempts, pairs_succeed, partial_groups
from trainyard.time import format_time

QUICK = {"maxRestarts": 0, "backoff": {"initialSeconds": 0}}


async def test_a_right_that_is_missing_is_a_condition(
    own_cluster: Cluster, own_namespace: Namespace, tmp_path: Path
) -> None:
    needs_gangs(own_cluster)
    environment = chart_environment(own_cluster, tmp_path)
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/trainyard"
    rules = (await own_namespace.api.get(role))["rules"]
    kept = [rule for rule in rules if rule["resources"] != ["podgroups"]]
    assert len(kept) == len(rules) - 1
    await own_namespace.api.patch(role, {"rules": kept})
    async with operating(environment, tmp_path / "log"):
        await own_namespace.create_job(make_manifest(scheduling={"gang": "native"}))
        condition = await own_namespace.has_condition("Running", "False", "GangUnavailable")
        assert "the operator needs the rights get, create and deletecollection on podgroups" in condition["message"]
        await own_namespace.api.patch(role, {"rules": rules})
        await own_namespace.has_pods("job-1-0", "job-1-1", seconds=90)


@pytest.fixture(scope="module")
def scheduling(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The other cluster, with a scheduler and an operator that has the rights of the chart."""
    needs_gangs(own_cluster)
    folder = tmp_path_factory.mktemp("scheduling")
    with kube_scheduler(own_cluster, folder / "scheduler"), chart_operator(own_cluster, folder):
        yield own_cluster


# --- gangs ----------------------------------------------------------------------------------------------------

MODES: dict[str, tuple[int, float, dict[str, Any]]] = {
    "native": (20, 0.2, {"scheduling": {"gang": "native"}}),
    "a timeout": (4, 0.02, {"schedulingTimeoutSeconds": 1}),
}
"""Rounds, longest time in seconds between the two jobs of a round, and fields of the spec."""


@pytest.mark.parametrize(("rounds", "spread", "fields"), MODES.values(), ids=MODES.keys())
@pytest.mark.usefixtures("scheduling")
async def test_two_jobs_that_each_need_the_whole_node_do_not_block_each_other(
    own_namespace: Namespace, rounds: int, spread: float, fields: dict[str, Any]
) -> None:
    """Each round has a node of its own, on which two jobs arrive at random moments."""
    pods = await pairs_succeed(own_namespace, rounds, spread=spread, **fields)
    if "scheduling" in fields:
        assert partial_groups(pods) == [], "a part of a group got nodes"
        assert set(pods.bound) == first_attempts(rounds)
    else:
        partial = partial_groups(pods)
        assert partial, "without a gang scheduler this test must see groups that block each other"
        reasons = [event["reason"] for event in await own_namespace.events()]
        assert reasons.count("SchedulingTimeout") >= len(partial) > 0


@pytest.mark.usefixtures("scheduling")
async def test_a_group_that_does_not_fit_holds_nothing(own_api: Api, own_namespace: Namespace) -> None:
    gang: dict[str, Any] = {"scheduling": {"gang": "native"}, "workers": {"resources": ONE_CPU}}
    async with nodes(own_api, ("small", 3, {})), bound_pods_run(own_namespace, 2):
        await own_namespace.create_job(make_manifest(replicas=4, **gang))

        async def refused() -> None:
            condition = await own_namespace.has_condition("Running", "False", "Unschedulable")
            assert "4 of 4 workers" in condition["message"]

        await eventually(refused)
        await own_namespace.create_job(make_manifest("other", replicas=2, **gang))
        await own_namespace.has_phase("Succeeded", "other")
        bound = {name for name, pod in (await own_namespace.pods()).items() if pod["spec"].get("nodeName")}
        assert bound == {"other-1-0", "other-1-1"}


@pytest.mark.usefixtures("scheduling")
async def test_each_attempt_has_a_group_and_a_suspended_job_has_none(own_api: Api, own_namespace: Namespace) -> None:
    path = f"/apis/scheduling.k8s.io/v1beta1/namespaces/{own_namespace.name}/podgroups"

    async def groups(*names: str) -> None:
        async def check() -> None:
            items = (await own_api.get(path))["items"]
            # Without its controller a deleted group keeps the finalizer that protects it.
            assert {g["metadata"]["name"] for g in items if "deletionTimestamp" not in g["metadata"]} == set(names)

        await eventually(check)

    async with nodes(own_api, ("n", 2, {})):
        await own_namespace.create_job(
            make_manifest(scheduling={"gang": "native"}, workers={"resources": ONE_CPU}, restartPolicy={"backoff": {}})
        )
        await all_bound(own_namespace, "job-1-0", "job-1-1")
        await groups("job-1")
        [group] = (await own_api.get(path))["items"]
        assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
        assert group["spec"]["disruptionMode"] == {"all": {}}
        await run_all(own_namespace, "job-1-0", "job-1-1")
        await own_namespace.has_phase("Running")
        await own_namespace.api.delete(own_namespace.core("pods", "job-1-0"), gracePeriodSeconds=0)
        await finish_deletion(own_namespace, "job-1-1")
        await all_bound(own_namespace, "job-2-0", "job-2-1")
        await groups("job-2")
        await own_namespace.edit({"suspend": True})
        for name in ("job-2-0", "job-2-1"):
            await finish_deletion(own_namespace, name)
        await own_namespace.has_phase("Suspended")
        await groups()


# --- topology -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gang", ["none", "native"])
@pytest.mark.usefixtures("scheduling")
async def test_workers_get_nodes_of_one_rack(own_api: Api, own_namespace: Namespace, gang: str) -> None:
    """Each rack has capacity for the group; by resources alone all of them would be used."""
    racks = {f"n{number}": "abcd"[number % 4] for number in range(16)}
    machines = [(name, 1, {"rack": rack}) for name, rack in racks.items()]
    spec: dict[str, Any] = {
        "trainer": trainer_spec(batch={"global": 16}),
        "parallelism": {"data": {"mode": "fsdp"}, "tensor": 2},
        "workers": {"resources": ONE_CPU, "procsPerWorker": 1},
    }
    names = [f"job-1-{index}" for index in range(4)]
    async with nodes(own_api, *machines):
        near = {"gang": gang, "topologyKey": "rack"}
        await own_namespace.create_job(make_manifest(replicas=4, scheduling=near, **spec))
        found = await all_bound(own_namespace, *names)
    assert len({racks[node] for node in found.values()}) == 1


@pytest.mark.parametrize("gang", ["none", "native"])
@pytest.mark.usefixtures("scheduling")
async def test_racks_that_are_too_small_keep_no_group_from_running(
    own_api: Api, own_namespace: Namespace, gang: str
) -> None:
    """Domains of two workers, racks of three nodes: where a domain is divided the group runs all the same."""
    racks = {f"n{number}": "ab"[number % 2] for number in range(6)}
    machines = [(name, 1, {"rack": rack}) for name, rack in racks.items()]
    spec: dict[str, Any] = {
        "trainer": trainer_spec(batch={"global": 18}),
        "parallelism": {"data": {"mode": "fsdp"}, "tensor": 2},
        "workers": {"resources": ONE_CPU, "procsPerWorker": 1},
        "scheduling": {"gang": gang, "topologyKey": "rack"},
    }
    async with nodes(own_api, *machines):
        await own_namespace.create_job(make_manifest(replicas=6, **spec))
        found = await all_bound(own_namespace, *(f"job-1-{index}" for index in range(6)))
    assert set(found.values()) == set(racks)


# --- gang schedulers that are not there -----------------------------------------------------------------------


@pytest.mark.parametrize("gang", GANG_CRDS)
@pytest.mark.usefixtures("operator")
async def test_a_gang_scheduler_that_is_missing_is_a_condition_until_it_is_installed(
    cluster: Cluster, namespace: Namespace, tmp_path: Path, gang: str
) -> None:
    name = GANG_CRDS[gang]["metadata"]["name"]
    cluster.run([cluster.kubectl, "delete", "crd", name, "--ignore-not-found"])
    queue = {"queue": "research"} if gang == "volcano" else {}
    await namespace.create_job(make_manifest(scheduling={"gang": gang, **queue}))
    condition = await namespace.has_condition("Running", "False", "GangUnavailable")
    assert f"{gang} needs " in condition["message"]
    assert await namespace.pods() == {}
    assert (await namespace.job())["status"]["attempt"] == 1
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump(GANG_CRDS[gang]), "utf-8")
    await asyncio.to_thread(install_crd, cluster, file)
    try:
        pods = await namespace.has_pods("job-1-0", "job-1-1", seconds=90)
        api = f"/apis/{name.partition('.')[2]}/{GANG_CRDS[gang]['spec']['versions'][0]['name']}"
        group = await namespace.api.get(f"{api}/namespaces/{namespace.name}/podgroups/job-1")
        assert group["spec"]["minMember"] == 2, "the API server has taken the group with strict validation"
        assert group["spec"].get("queue") == queue.get("queue")
        assert pods["job-1-0"]["spec"]["schedulerName"] != "default-scheduler"
        # The attempt before has a group no more.
        await run_all(namespace, "job-1-0", "job-1-1")
        await namespace.has_phase("Running")
        await namespace.api.delete(namespace.core("pods", "job-1-0"), gracePeriodSeconds=0)
        await finish_deletion(namespace, "job-1-1")
        await namespace.has_pods("job-2-0", "job-2-1")
        items = (await namespace.api.get(f"{api}/namespaces/{namespace.name}/podgroups"))["items"]
        assert [item["metadata"]["name"] for item in items] == ["job-2"]
    finally:
        cluster.run([cluster.kubectl, "delete", "crd", name, "--wait=false"])


# --- queues ---------------------------------------------------------------------------------------------------

GATE = "kueue.x-k8s.io/admission"


async def kueue_manages(namespace: Namespace, *names: str) -> None:
    """What the webhook of Kueue does with a pod that is created."""
    metadata = {"labels": {"kueue.x-k8s.io/managed": "true"}, "finalizers": ["kueue.x-k8s.io/managed"]}
    for name in names:
        await namespace.api.patch(namespace.core("pods", name), {"metadata": metadata})


async def kueue_admits(namespace: Namespace, *names: str) -> None:
    for name in names:
        await namespace.api.patch(namespace.core("pods", name), {"spec": {"schedulingGates": []}})


async def kueue_evicts(namespace: Namespace, *names: str) -> None:
    """A preemption: the reason in a condition, then a deletion, which a finalizer holds."""
    target = {
        "type": "TerminationTarget",
        "status": "True",
        "reason": "WorkloadEvictedDueToPreempted",
        "message": "Preempted to accommodate a workload",
        "lastTransitionTime": format_time(now()),
    }
    for name in names:
        pod = await namespace.api.get(namespace.core("pods", name))
        conditions = [*pod["status"]["conditions"], target]
        await namespace.api.patch(namespace.core("pods", name, "status"), {"status": {"conditions": conditions}})
        await namespace.api.delete(namespace.core("pods", name))


async def release(namespace: Namespace, *names: str) -> None:
    """What Kueue does when all pods of a group have ended: it gives the quota away, and removes its finalizer."""
    for name in names:
        await namespace.api.patch(namespace.core("pods", name), {"metadata": {"finalizers": None}})
        await finish_deletion(namespace, name)


@pytest.fixture
def local_queues(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """The CRD of the queues of Kueue."""
    file = tmp_path / "crd.yaml"
    file.write_text(yaml.safe_dump(LOCAL_QUEUES), "utf-8")
    install_crd(cluster, file)
    yield
    cluster.run([cluster.kubectl, "delete", "crd", LOCAL_QUEUES["metadata"]["name"], "--wait=false"])


async def make_queue(namespace: Namespace, name: str) -> None:
    body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": name}}
    await namespace.api.post(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace.name}/localqueues", body)


@pytest.mark.usefixtures("operator")
async def test_a_cluster_without_kueue_is_a_condition(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(scheduling={"queue": "research"}))
    condition = await namespace.has_condition("Running", "False", "QueueUnavailable")
    assert "the cluster does not serve kueue.x-k8s.io; install Kueue" in condition["message"]
    assert await namespace.pods() == {}


@pytest.mark.usefixtures("operator", "local_queues")
async def test_a_job_waits_in_its_queue_and_keeps_its_quota_until_its_pods_are_gone(namespace: Namespace) -> None:
    await make_queue(namespace, "research")
    await namespace.create_job(make_manifest(scheduling={"queue": "research"}, restartPolicy=QUICK))
    names = ("job-1-0", "job-1-1")
    pods = await namespace.has_pods(*names)
    assert [gate["name"] for gate in pods["job-1-0"]["spec"]["schedulingGates"]] == [GATE]
    condition = await namespace.has_condition("Running", "False", "QueueUnavailable")
    assert "install Kueue with its integration pod" in condition["message"]
    with pytest.raises(ApiRefusal):  # no scheduler can bind it
        await run_all(namespace, "job-1-0")
    await kueue_manages(namespace, *names)
    await namespace.has_condition("Running", "False", "Queued")
    await kueue_admits(namespace, *names)
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    await kueue_evicts(namespace, *names)
    status = await namespace.has_phase("Restarting")
    assert (status["attempt"], status["restartsCounted"], status["lastFailure"]["reason"]) == (
        2,
        0,
        "WorkloadEvictedDueToPreempted",
    )
    # The containers have ended, but the finalizer stays until Kueue has counted the group as finished.
    ended = {"status": kubelet.ended(now(), 143)}
    for name in names:
        await namespace.api.patch(namespace.core("pods", name, "status"), ended)
    await namespace.edit({"activeDeadlineSeconds": 1000})
    await asyncio.sleep(1)
    assert set(await namespace.pods()) == set(names), "no pod of the next group before all pods of this one are gone"
    await release(namespace, *names)
    pods = await namespace.has_pods("job-2-0", "job-2-1")
    assert pods["job-2-0"]["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "job-2"
    # Suspended means that the queue may give the quota away.
    await kueue_manages(namespace, *pods)
    await namespace.edit({"suspend": True})
    await namespace.has_phase("Suspending")
    await release(namespace, *pods)
    await namespace.has_phase("Suspended")
