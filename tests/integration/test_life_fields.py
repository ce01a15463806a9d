"""The fields that bound the life of a job, and what tools see of it, on a real API server with a real operator."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.builders import elastic, make_manifest
from tests.cluster import Cluster
from tests.support import kubelet
from tests.support.fake_kubelet import end_all, finish_deletion, is_unschedulable, recording, run_all
from tests.support.kube import ApiRefusal, Namespace, Object, eventually

QUICK = {"maxRestarts": 0, "backoff": {"initialSeconds": 0}}


async def running(namespace: Namespace, **spec: Any) -> list[str]:
    """Create a job whose pods run; returns their names."""
    await namespace.create_job(make_manifest(**spec))
    names = ["job-1-0", "job-1-1"]
    await namespace.has_pods(*names)
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    return names


async def is_gone(namespace: Namespace, name: str) -> None:
    """Wait until a pod does not exist, or is being deleted."""

    async def check() -> None:
        pod = (await namespace.pods()).get(name, {"metadata": {"deletionTimestamp": ""}})
        assert "deletionTimestamp" in pod["metadata"]

    await eventually(check)


# --- limits ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
async def test_a_job_ends_at_its_deadline(namespace: Namespace) -> None:
    names = await running(namespace, activeDeadlineSeconds=2, restartPolicy=QUICK)
    condition = await namespace.has_condition("Failed", "True", "DeadlineExceeded")
    assert condition["message"] == "all workers have run for 2 s in total (spec.activeDeadlineSeconds)"
    for name in names:
        await is_gone(namespace, name)
    assert (await namespace.job())["status"]["runningSeconds"] == 2


@pytest.mark.usefixtures("operator")
async def test_a_finished_job_is_deleted_at_its_time_which_may_be_set_then(namespace: Namespace) -> None:
    names = await running(namespace)
    await end_all(namespace, *names)
    await namespace.has_phase("Succeeded")
    await namespace.edit({"ttlSecondsAfterFinished": 1})

    async def check() -> None:
        assert (await namespace.api.get(namespace.jobs()))["items"] == []

    await eventually(check)


@pytest.mark.parametrize(("policy", "deleted"), [("Running", {1}), ("All", {0, 1}), ("None", set())])
@pytest.mark.usefixtures("operator")
async def test_the_policy_says_which_pods_stay(namespace: Namespace, policy: str, deleted: set[int]) -> None:
    names = await running(namespace, cleanPodPolicy=policy, restartPolicy=QUICK)
    await end_all(namespace, names[0], code=1)
    await namespace.has_phase("Failed")
    for index in deleted:
        await is_gone(namespace, names[index])
    # Another reconciliation changes nothing.
    generation = (await namespace.edit({"activeDeadlineSeconds": 9}))["metadata"]["generation"]

    async def observed() -> None:
        assert (await namespace.job())["status"]["observedGeneration"] == generation

    await eventually(observed)
    pods = await namespace.pods()
    kept = {index for index, name in enumerate(names) if "deletionTimestamp" not in pods.get(name, _GONE)["metadata"]}
    assert kept == {0, 1} - deleted


_GONE: Object = {"metadata": {"deletionTimestamp": ""}}


@pytest.mark.usefixtures("operator")
async def test_rank_zero_decides_about_the_success(namespace: Namespace) -> None:
    names = await running(namespace, successPolicy="RankZero")
    await end_all(namespace, names[0])
    await namespace.has_condition("Succeeded", "True", "RankZeroSucceeded")
    await is_gone(namespace, names[1])


# --- another controller ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
async def test_a_job_of_another_controller_gets_no_objects_and_no_status(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(managedBy="example.com/other"))
    await namespace.edit({"suspend": True})
    await namespace.edit({"suspend": False})
    # Its controller writes the status, which the operator neither repairs nor acts upon.
    status = {"phase": "Running", "attempt": 7, "conditions": []}
    await namespace.api.patch(namespace.jobs("job", "status"), {"status": status})
    version = (await namespace.job())["metadata"]["resourceVersion"]
    await namespace.create_job(make_manifest("marker", replicas=1))
    await namespace.has_pods("marker-1-0")
    assert (await namespace.job())["metadata"]["resourceVersion"] == version
    assert [e for e in await namespace.events() if e["involvedObject"]["name"] == "job"] == []
    for change in ("trainyard.dev/operator", None):
        with pytest.raises(ApiRefusal, match=r"spec.managedBy: cannot be changed"):
            await namespace.edit({"managedBy": change})
    with pytest.raises(ApiRefusal, match=r"spec.managedBy"):
        await namespace.create_job(make_manifest("invalid", managedBy="no-domain"))


# --- scheduling -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
async def test_a_group_that_is_not_scheduled_in_time_gives_its_node_back_and_tries_again(namespace: Namespace) -> None:
    async with recording(namespace) as recorder:
        await namespace.create_job(make_manifest(schedulingTimeoutSeconds=5, restartPolicy=QUICK))
        await namespace.has_pods("job-1-0", "job-1-1")
        await run_all(namespace, "job-1-0")
        await namespace.api.patch(
            namespace.core("pods", "job-1-1", "status"), {"status": kubelet.unschedulable("no GPU is free")}
        )
        condition = await namespace.has_condition("Running", "False", "SchedulingTimeout")
        assert "1 of 2 pods were not scheduled within 5 s (spec.schedulingTimeoutSeconds)" in condition["message"]
        await is_gone(namespace, "job-1-0")
        await finish_deletion(namespace, "job-1-0")
        # Without a scheduler no pod has a node: bind those of the next attempt at once.
        await namespace.has_pods("job-2-0", "job-2-1")
        await run_all(namespace, "job-2-0", "job-2-1")
        status = await namespace.has_phase("Running")
    assert (status["restarts"], status["restartsCounted"], status["disruptions"]) == (0, 0, 0)
    assert "scheduling" not in status
    assert [e["reason"] for e in await namespace.events()].count("SchedulingTimeout") == 1
    recorder.check_invariants(limit=0)


# --- what tools see -------------------------------------------------------------------------------------------


def kstatus(job: Object) -> str:
    """Return what kstatus computes for a custom resource (kubernetes-sigs/cli-utils, pkg/kstatus/status)."""
    status = job.get("status", {})
    held = {c["type"]: c["status"] for c in status.get("conditions", ())}
    observed = status.get("observedGeneration", job["metadata"]["generation"])
    if observed != job["metadata"]["generation"] or held.get("Reconciling") == "True":
        return "InProgress"
    return "Failed" if held.get("Stalled") == "True" else "InProgress" if held.get("Ready") == "False" else "Current"


async def looks(namespace: Namespace, expected: str) -> None:
    async def check() -> None:
        assert kstatus(await namespace.job()) == expected

    await eventually(check)


@pytest.mark.usefixtures("operator")
async def test_tools_see_a_job_for_what_it_is_and_kubectl_waits_for_its_end(
    cluster: Cluster, namespace: Namespace
) -> None:
    created = await namespace.create_job(make_manifest(restartPolicy=QUICK))
    assert kstatus(created) == "InProgress", "no status was written yet"
    await namespace.has_pods("job-1-0", "job-1-1")
    await looks(namespace, "InProgress")
    await run_all(namespace, "job-1-0", "job-1-1")
    await looks(namespace, "Current")
    wait: list[str | Path] = [cluster.kubectl, "wait", "tj/job", "--for=condition=Finished", "--timeout=30s"]
    waiting = asyncio.create_task(asyncio.to_thread(cluster.run, [*wait, "-n", namespace.name]))
    await end_all(namespace, "job-1-1", code=1, message="no data")
    await looks(namespace, "Failed")
    assert "condition met" in (await waiting).stdout
    job = await namespace.job()
    stalled = next(c for c in job["status"]["conditions"] if c["type"] == "Stalled")
    assert "pod job-1-1 failed" in stalled["message"]


async def test_a_job_that_no_operator_has_seen_is_in_progress(own_namespace: Namespace) -> None:
    await own_namespace.create_job(make_manifest())
    job = await own_namespace.job()
    assert kstatus(job) == "InProgress"
    assert job["status"]["observedGeneration"] == 0


async def test_a_list_has_one_condition_of_each_type(own_namespace: Namespace) -> None:
    await own_namespace.create_job(make_manifest())
    condition = {"type": "A", "status": "True", "reason": "r", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    path = own_namespace.jobs("job", "status")
    with pytest.raises(ApiRefusal, match="Duplicate value"):
        await own_namespace.api.patch(path, {"status": {"conditions": [condition, condition]}})
    # Two writers apply conditions of their own.
    for name in ("A", "B"):
        status = {"conditions": [{**condition, "type": name}]}
        body = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "status": status}
        apply = "application/apply-patch+yaml"
        await own_namespace.api.request("PATCH", path, body, content_type=apply, fieldManager=f"writer-{name}")
    assert [c["type"] for c in (await own_namespace.job())["status"]["conditions"]] == ["A", "B"]


@pytest.mark.usefixtures("operator")
async def test_the_selector_of_the_scale_subresource_finds_the_workers(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(**elastic(resizeAfterSeconds=1)))
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0")
    await is_unschedulable(namespace, "job-1-1")
    await namespace.has_condition("Degraded", "True", "Resized")
    await finish_deletion(namespace, "job-1-0")
    await namespace.has_pods("job-2-0")
    await run_all(namespace, "job-2-0")
    await namespace.has_pods("job-2-0", "job-2-placeholder-0")
    await namespace.create_job(make_manifest("job2", replicas=1))
    await namespace.has_pods("job-2-0", "job-2-placeholder-0", "job2-1-0")
    scale = await namespace.api.get(namespace.jobs("job", "scale"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 1)
    found = await namespace.api.get(namespace.core("pods"), labelSelector=scale["status"]["selector"])
    assert [pod["metadata"]["name"] for pod in found["items"]] == ["job-2-0"]
