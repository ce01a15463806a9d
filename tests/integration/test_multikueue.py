"""MultiKueue: a job that runs on another cluster, and whose status is copied back.

In each change its generic adapter is played, as of Kueue v0.17.0 (externalframeworks.Adapter); an extended test has
the real one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import chart_operator, control_plane, install_crd
from tests.support.fake_kubelet import end_all, finish_deletion, run_all
from tests.support.kube import Api, ApiRefusal, Namespace, Object, connect, eventually
from tests.support.kueue import SYSTEM, create, kueue, make_queue
from trainyard_operator.kube.merge_patch import merge_patch

MULTIKUEUE = "kueue.x-k8s.io/multikueue"
LABELS = {"kueue.x-k8s.io/prebuilt-workload-name": "job", "kueue.x-k8s.io/multikueue-origin": "multikueue"}
"""What the adapter adds to the copy."""
WORKERS = ("job-1-0", "job-1-1")


# --- the adapter is played ------------------------------------------------------------------------------------


async def copy_job(local: Namespace, remote: Namespace) -> None:
    """Copy a job without managedBy, with all of its metadata."""
    body = await local.job()
    del body["metadata"]["resourceVersion"], body["spec"]["managedBy"]
    body["metadata"] |= {"namespace": remote.name, "labels": LABELS}
    await remote.api.post(remote.jobs(), body)


async def copy_status(local: Namespace, remote: Namespace) -> Object:
    """Replace the status by that of the copy with a merge patch; returns it."""
    before, after = (await local.job()).get("status", {}), (await remote.job())["status"]
    patch = {"status": merge_patch(before, after)}
    copied: Object = (await local.api.patch(local.jobs("job", "status"), patch))["status"]
    assert copied == after, "the schema drops a part of the status"
    return copied


@pytest.mark.usefixtures("operator")
async def test_a_job_of_multikueue_is_left_alone_and_has_the_status_of_its_copy(
    api: Api, namespace: Namespace, other: Namespace
) -> None:
    await namespace.create_job(make_manifest(managedBy=MULTIKUEUE, restartPolicy={"backoff": {}}))
    await copy_job(namespace, other)
    await other.has_pods(*WORKERS)
    await other.has_condition("Running", "False", "WaitingForPods")
    assert (await copy_status(namespace, other))["phase"] == "Pending"
    await run_all(other, *WORKERS)
    await other.has_phase("Running")
    assert (await copy_status(namespace, other))["workers"]["running"] == 2
    await end_all(other, "job-1-0", code=1, message="out of luck")
    await other.has_phase("Restarting")
    assert (await copy_status(namespace, other))["lastFailure"]["exitCode"] == 1
    for name in WORKERS:
        await finish_deletion(other, name)
    await other.has_pods("job-2-0", "job-2-1")
    await run_all(other, "job-2-0", "job-2-1")
    await end_all(other, "job-2-0", "job-2-1")
    await other.has_phase("Succeeded")
    assert (await copy_status(namespace, other))["phase"] == "Succeeded"
    # The operator has neither changed the status nor created anything.
    version = (await namespace.job())["metadata"]["resourceVersion"]
    await namespace.create_job(make_manifest("marker", replicas=1))
    await namespace.has_pods("marker-1-0")
    assert (await namespace.job())["metadata"]["resourceVersion"] == version
    assert [e for e in await namespace.events() if e["involvedObject"]["name"] == "job"] == []
    # Deleting the copy deletes its pods, which the garbage collector does in a cluster that has one.
    await api.delete(other.jobs("job"), propagationPolicy="Background")
    with pytest.raises(ApiRefusal, match="not found"):
        await other.job()


@pytest.fixture
async def other(api: Api) -> AsyncIterator[Namespace]:
    """A namespace in place of another cluster."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "worker-"}}
    created = Namespace(api, (await api.post("/api/v1/namespaces", body))["metadata"]["name"])
    yield created
    await api.delete(created.jobs())
    await api.delete(created.core("pods"), gracePeriodSeconds=0)


# --- the real one ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A third cluster, with Kueue and an operator."""
    folder = tmp_path_factory.mktemp("worker")
    with control_plane("integration-worker") as cluster:
        install_crd(cluster)
        with kueue(cluster, folder / "kueue"), chart_operator(cluster, folder):
            yield cluster


@pytest.fixture(scope="module")
def manager_cluster(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The other cluster, with an operator, and with a Kueue that knows TrainingJobs as an external framework."""
    folder = tmp_path_factory.mktemp("manager")
    frameworks: dict[str, Any] = {"externalFrameworks": [{"name": "TrainingJob.v1alpha1.trainyard.dev"}]}
    with kueue(own_cluster, folder / "kueue", multiKueue=frameworks), chart_operator(own_cluster, folder):
        yield own_cluster


async def connect_worker(api: Api, worker: Cluster) -> str:
    """Let the Kueue of a cluster send jobs to another one; returns the name of the admission check."""
    kubeconfig = await asyncio.to_thread(worker.kubeconfig.read_text, "utf-8")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "worker"}}
    await api.post(f"/api/v1/namespaces/{SYSTEM}/secrets", {**secret, "stringData": {"kubeconfig": kubeconfig}})
    source = {"kubeConfig": {"locationType": "Secret", "location": "worker"}}
    await create(api, "MultiKueueCluster", {"name": "worker"}, {"clusterSource": source})
    await create(api, "MultiKueueConfig", {"name": "workers"}, {"clusters": ["worker"]})
    parameters = {"apiGroup": "kueue.x-k8s.io", "kind": "MultiKueueConfig", "name": "workers"}
    check = {"controllerName": MULTIKUEUE, "parameters": parameters}
    await create(api, "AdmissionCheck", {"name": "multikueue"}, check)
    return "multikueue"


async def create_workload(namespace: Namespace) -> None:
    """Play the controller that MultiKueue expects for a kind that Kueue does not know: it makes the Workload."""
    job = await namespace.job()
    owner = {key: job[key] for key in ("apiVersion", "kind")} | {key: job["metadata"][key] for key in ("name", "uid")}
    container = {"name": "worker", "image": "example.com/train", "resources": {"requests": {"cpu": 1}}}
    template = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    metadata = {"name": "job", "namespace": namespace.name, "ownerReferences": [{**owner, "controller": True}]}
    sets = [{"name": "main", "count": 2, "template": template}]
    await create(namespace.api, "Workload", metadata, {"queueName": "research", "podSets": sets})


@pytest.mark.extended
async def test_multikueue_runs_a_job_on_another_cluster(
    manager_cluster: Cluster, worker_cluster: Cluster, own_namespace: Namespace
) -> None:
    assert manager_cluster.kubeconfig != worker_cluster.kubeconfig
    async with connect(worker_cluster.kubeconfig) as api:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": own_namespace.name}}
        await api.post("/api/v1/namespaces", body)
        remote = Namespace(api, own_namespace.name)
        check = await connect_worker(own_namespace.api, worker_cluster)
        await make_queue(remote, cpus=2)
        await make_queue(own_namespace, cpus=2, checks=[check])
        await own_namespace.create_job(make_manifest(managedBy=MULTIKUEUE))
        await create_workload(own_namespace)
        pods = await remote.has_pods(*WORKERS)
        copied = await remote.job()
        assert "managedBy" not in copied["spec"]
        assert copied["metadata"]["labels"].keys() == LABELS.keys()
        assert not pods["job-1-0"]["spec"].get("schedulingGates"), "the Workload of the job has the quota"
        await run_all(remote, *WORKERS)
        status = await own_namespace.has_phase("Running")
        assert status["workers"]["running"] == 2
        await end_all(remote, *WORKERS)
        status = await own_namespace.has_phase("Succeeded")
        assert status == (await remote.job())["status"]
        assert await own_namespace.pods() == {}
        # The job ends on the worker with its Workload.
        workload = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{own_namespace.name}/workloads/job"
        await own_namespace.api.delete(workload)

        async def gone() -> None:
            assert (await api.get(remote.jobs()))["items"] == []

        await eventually(gone)
