"""The life of a job on a real API server, with a real operator. The tests play the kubelet."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import make_manifest, termination_message, trainer_spec
from tests.cluster import Cluster
from tests.integration.conftest import leave, new_namespace
from tests.support import kubelet
from tests.support.fake_kubelet import end_all, fake_kubelet, finish_deletion, recording, report, run_all
from tests.support.kube import Api, ApiRefusal, Namespace, Object, connect, eventually
from tests.support.operator import OperatorProcess
from trainyard.protocol.progress import Progress

pytestmark = pytest.mark.usefixtures("operator")

QUICK = {"maxRestarts": 3, "backoff": {"initialSeconds": 0}}


async def running(namespace: Namespace, *, attempt: int = 1, replicas: int = 2) -> list[str]:
    """Wait for the pods of an attempt and let them run. Returns their names."""
    names = [f"job-{attempt}-{index}" for index in range(replicas)]
    await namespace.has_pods(*names)
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    return names


async def has_told(namespace: Namespace, *reasons: str) -> None:
    """Wait until the events are exactly these, in the order in which they occurred first."""

    async def check() -> None:
        events = sorted(await namespace.events(), key=lambda e: float(e["metadata"]["name"].partition(".")[2]))
        told = [event["reason"] for event in events]
        times = Counter[str]()
        for event in events:
            times[event["reason"]] += event["count"]
        assert (list(dict.fromkeys(told)), times) == (list(dict.fromkeys(reasons)), Counter(reasons))

    await eventually(check)


@dataclass(frozen=True)
class LostNode:
    """A job with a pod on a node that does not answer, since the tests of this module began."""

    namespace: str
    version: str
    """Resource version before the job was created."""


@pytest.fixture(scope="module", autouse=True)
def lost_node(cluster: Cluster, shared_operator: OperatorProcess) -> LostNode:
    """Lose the node now, so that the wait for the forced deletion overlaps with the other tests."""

    async def lose() -> LostNode:
        await shared_operator.ready()
        async with connect(cluster.kubeconfig) as api:
            namespace = await new_namespace(api)
            version = (await api.get(namespace.core("pods")))["metadata"]["resourceVersion"]
            policy = {"maxRestarts": 0, "backoff": {"initialSeconds": 0}}
            await namespace.create_job(make_manifest(restartPolicy=policy))
            names = await running(namespace)
            # What the cluster does with a pod whose node does not answer. No kubelet will end it: none runs here.
            await namespace.api.delete(namespace.core("pods", names[0]), gracePeriodSeconds=1)
            await namespace.has_condition("Running", "False", "WaitingForOldPods")
            await finish_deletion(namespace, names[1])
            return LostNode(namespace.name, version)

    return asyncio.run(lose())


async def test_children_have_their_names_and_belong_to_the_job(namespace: Namespace) -> None:
    job = await namespace.create_job(make_manifest(trainer=trainer_spec()))
    pods = await namespace.has_pods("job-1-0", "job-1-1")
    service = await namespace.api.get(namespace.core("services", "job"))
    config = await namespace.api.get(namespace.core("configmaps", "job"))
    for child in (*pods.values(), service, config):
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["kind"], owner["controller"]) == (job["metadata"]["uid"], "TrainingJob", True)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert json.loads(config["data"]["config.json"])["worldSize"] == 2
    status = await namespace.has_phase("Pending")
    assert (status["attempt"], status["workers"]["desired"], status["observedGeneration"]) == (1, 2, 1)


async def test_a_job_runs_and_succeeds_with_its_final_progress(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(trainer=trainer_spec()))
    names = await running(namespace)
    await namespace.has_condition("Progressing", "False", "NoStepYet")
    words = termination_message(rank=0, progress=Progress(step=100, total_steps=100, loss=1.5))
    await end_all(namespace, names[0], message=words)
    await end_all(namespace, names[1])
    status = await namespace.has_phase("Succeeded")
    assert (status["progress"]["step"], status["progress"]["loss"]) == (100, 1.5)
    assert status["completionTime"] >= status["startTime"]
    assert status["workers"]["succeeded"] == 2
    assert set(await namespace.pods()) == set(names), "pods that have ended stay for their logs"
    await has_told(namespace, "Accepted", "AllWorkersRunning", "AllWorkersSucceeded")


async def test_one_failed_worker_replaces_the_group_and_attempts_never_overlap(namespace: Namespace) -> None:
    async with recording(namespace) as recorder:
        await namespace.create_job(make_manifest(replicas=3, restartPolicy=QUICK))
        names = await running(namespace, replicas=3)
        await end_all(namespace, names[1], code=137, message="killed")
        await namespace.has_condition("Running", "False", "WaitingForOldPods")

        async def only_the_old_are_left() -> None:
            going = {name for name, pod in (await namespace.pods()).items() if "deletionTimestamp" in pod["metadata"]}
            assert going == {"job-1-0", "job-1-2"}, "those that run are being deleted, the one that has ended is gone"
            assert set(await namespace.pods()) == going

        await eventually(only_the_old_are_left)
        for name in ("job-1-0", "job-1-2"):
            await finish_deletion(namespace, name)
        await running(namespace, attempt=2, replicas=3)
    recorder.check_invariants(limit=3)
    assert sorted(recorder.created()) == [f"job-{attempt}-{index}" for attempt in (1, 2) for index in range(3)]
    status = (await namespace.job())["status"]
    assert (status["restarts"], status["restartsCounted"]) == (1, 1)
    failure = status["lastFailure"]
    assert (failure["pod"], failure["node"], failure["exitCode"], failure["reason"]) == (
        "job-1-1",
        "node-1",
        137,
        "SIGKILL",
    )


async def test_the_limit_ends_the_job_and_says_why(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(replicas=1, restartPolicy={**QUICK, "maxRestarts": 1}))
    for attempt in (1, 2):
        (name,) = await running(namespace, attempt=attempt, replicas=1)
        message = termination_message(rank=0, exception="ValueError", message="no data")
        await end_all(namespace, name, code=1, message=message)
    status = await namespace.has_phase("Failed")
    assert (status["lastFailure"]["reason"], status["lastFailure"]["message"]) == ("ValueError", "no data")
    failed = await namespace.has_condition("Failed", "True", "RestartLimitReached")
    assert failed["message"].endswith("restartPolicy.maxRestarts is 1")
    await has_told(
        namespace, "Accepted", "AllWorkersRunning", "WorkerFailed", "AllWorkersRunning", "RestartLimitReached"
    )


@pytest.mark.parametrize("how", ["evicted", "deleted"])
async def test_a_removed_pod_does_not_count_as_a_restart(namespace: Namespace, how: str) -> None:
    await namespace.create_job(make_manifest(restartPolicy={"maxRestarts": 0, "backoff": {"initialSeconds": 0}}))
    names = await running(namespace)
    if how == "evicted":
        await report(namespace, names[0], kubelet.evicted())
    else:
        await namespace.api.delete(namespace.core("pods", names[0]))
    async with fake_kubelet(namespace):
        status = await eventually(lambda: attempt_runs(namespace, 2))
    assert (status["restarts"], status.get("restartsCounted", 0)) == (1, 0)


async def attempt_runs(namespace: Namespace, attempt: int) -> Object:
    status: Object = (await namespace.job())["status"]
    assert (status["attempt"], status["phase"]) == (attempt, "Running")
    return status


async def test_suspension_deletes_the_pods_and_resuming_creates_new_ones(namespace: Namespace) -> None:
    async with fake_kubelet(namespace), recording(namespace) as recorder:
        await namespace.create_job(make_manifest())
        await namespace.has_phase("Running")
        await namespace.edit({"suspend": True})
        await namespace.has_phase("Suspended")
        await namespace.has_pods()
        await namespace.edit({"image": "example.com/other"})
        await namespace.edit({"suspend": False})
        status = await namespace.has_phase("Running")
        assert (status["attempt"], status["restarts"]) == (2, 0)
        pods = await namespace.pods()
        assert {p["spec"]["containers"][0]["image"] for p in pods.values()} == {"example.com/other"}
    recorder.check_invariants(limit=0)


async def test_a_change_right_after_suspending_is_refused_until_the_job_is_suspended(namespace: Namespace) -> None:
    refusal = r"only suspend, .* may change while the job is active"
    await namespace.create_job(make_manifest())
    names = await running(namespace)
    with pytest.raises(ApiRefusal, match=refusal):
        await namespace.edit({"suspend": True, "image": "example.com/other"})
    await namespace.edit({"suspend": True})
    status = await namespace.has_phase("Suspending")
    assert status["workers"]["running"] == 2
    with pytest.raises(ApiRefusal, match=refusal):
        await namespace.edit({"image": "example.com/other"})
    await finish_deletion(namespace, names[0])
    await namespace.has_pods(names[1])
    await namespace.has_phase("Suspending")
    await finish_deletion(namespace, names[1])
    await namespace.has_phase("Suspended")
    await namespace.edit({"image": "example.com/other"})


async def test_kubectl_scale_restarts_the_group_at_the_new_size_without_counting(
    cluster: Cluster, namespace: Namespace
) -> None:
    async with fake_kubelet(namespace), recording(namespace) as recorder:
        await namespace.create_job(make_manifest(restartPolicy={"maxRestarts": 0}))
        await namespace.has_phase("Running")
        scale: list[str | Path] = [cluster.kubectl, "scale", "tj/job", "--replicas=3", "-n", namespace.name]
        await asyncio.to_thread(cluster.run, scale)
        await eventually(lambda: attempt_runs(namespace, 2))
        await namespace.has_pods("job-2-0", "job-2-1", "job-2-2")
        assert (await namespace.api.get(namespace.jobs("job", "scale")))["status"]["replicas"] == 3
    recorder.check_invariants(limit=0)


async def test_a_deleted_job_gets_no_children_any_more(namespace: Namespace, operator: OperatorProcess) -> None:
    await namespace.create_job(make_manifest())
    names = await running(namespace)
    async with recording(namespace) as recorder:
        await namespace.api.delete(namespace.jobs("job"))
        for name in names:  # the garbage collector
            await namespace.api.delete(namespace.core("pods", name), gracePeriodSeconds=0)
        await namespace.has_pods()
        marker = await namespace.create_job(make_manifest("marker", replicas=1))

        async def marked() -> None:  # by now the operator and the recording have seen all of it
            assert "marker-1-0" in recorder.created()

        await eventually(marked)
    assert marker["metadata"]["uid"]
    assert recorder.created() == ["marker-1-0"]
    mine = [line for line in operator.lines if f"{namespace.name}/job" in line["message"]]
    assert [line for line in mine if line["level"] != "info"] == []


async def test_a_job_created_again_under_its_name_starts_from_the_beginning(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest())
    names = await running(namespace)
    old = (await namespace.job())["metadata"]["uid"]
    await namespace.api.delete(namespace.jobs("job"))
    await namespace.create_job(make_manifest())
    for name in names:
        await namespace.api.delete(namespace.core("pods", name), gracePeriodSeconds=0)
    await namespace.api.delete(namespace.core("services", "job"))

    async def check() -> None:
        pods = await namespace.pods()
        assert set(pods) == {"job-1-0", "job-1-1"}
        assert old not in {p["metadata"]["ownerReferences"][0]["uid"] for p in pods.values()}

    await eventually(check)
    assert (await namespace.has_phase("Pending"))["attempt"] == 1


async def test_a_name_in_use_is_reported_until_it_is_free(namespace: Namespace) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "job"},
        "spec": {"ports": [{"port": 80}]},
    }
    await namespace.api.post(namespace.core("services"), service)
    await namespace.create_job(make_manifest())
    condition = await namespace.has_condition("Running", "False", "NameTaken")
    assert condition["message"] == (
        "Service job exists already and is not this job's; delete it, or give the job another name"
    )
    await has_told(namespace, "Accepted", "NameTaken")
    assert await namespace.pods() == {}
    await namespace.api.delete(namespace.core("services", "job"))
    await running(namespace)


async def test_a_quota_is_reported_until_it_is_raised(namespace: Namespace) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": {"hard": {"pods": "1"}},
    }
    await namespace.api.post(namespace.core("resourcequotas"), quota)
    counted = {"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}}  # what the quota's controller would write
    await namespace.api.patch(namespace.core("resourcequotas", "few", "status"), counted)
    await namespace.create_job(make_manifest())
    condition = await namespace.has_condition("Running", "False", "PodsRefused")
    assert "exceeded quota: few" in condition["message"]
    await has_told(namespace, "Accepted", "PodsRefused")
    await namespace.api.delete(namespace.core("resourcequotas", "few"))
    await running(namespace)


async def test_a_violated_security_profile_is_reported(namespace: Namespace) -> None:
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await namespace.api.patch(f"/api/v1/namespaces/{namespace.name}", labels)
    await namespace.create_job(make_manifest())  # a program of one's own sets no security context
    condition = await namespace.has_condition("Running", "False", "PodsRefused")
    assert "violates PodSecurity" in condition["message"]


async def test_the_trainer_passes_the_restricted_security_profile(namespace: Namespace) -> None:
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await namespace.api.patch(f"/api/v1/namespaces/{namespace.name}", labels)
    await namespace.create_job(make_manifest(trainer=trainer_spec()))
    await running(namespace)


async def test_a_scheduling_blocker_is_in_the_condition(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest())
    await namespace.has_pods("job-1-0", "job-1-1")
    await report(namespace, "job-1-1", kubelet.waiting("ImagePullBackOff", "Back-off pulling image"))
    condition = await namespace.has_condition("Running", "False", "ImagePullFailed")
    assert condition["message"].startswith("1 of 2 workers: pod job-1-1: cannot pull image")


async def test_an_infinite_loss_does_not_keep_a_job_from_ending(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(trainer=trainer_spec()))
    names = await running(namespace)
    await end_all(namespace, *names, message='{"rank": 0, "progress": {"step": 9, "loss": Infinity}}')
    status = await namespace.has_phase("Succeeded")
    assert status["progress"]["step"] == 9
    assert "loss" not in status["progress"]


async def test_invalid_labels_on_another_pod_are_ignored(namespace: Namespace, operator: OperatorProcess) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "foreign",
            "labels": {f"trainyard.dev/{n}": "x" for n in ("job-name", "attempt", "index", "replicas")},
        },
        "spec": {"containers": [{"name": "worker", "image": "x"}]},
    }
    await namespace.api.post(namespace.core("pods"), pod)
    await namespace.create_job(make_manifest("x", replicas=1))
    await namespace.has_pods("foreign", "x-1-0")
    assert (await operator.page("/healthz"))[0] == 200


async def test_a_pod_on_a_lost_node_is_deleted_by_force_and_the_group_restarts(lost_node: LostNode, api: Api) -> None:
    """Keep this test at the end: its 32 s of waiting begin with the first test of this module."""
    namespace = Namespace(api, lost_node.namespace)
    async with recording(namespace, since=lost_node.version) as recorder:
        await namespace.has_pods("job-2-0", "job-2-1", seconds=60)
    recorder.check_invariants(limit=0)
    forced = [event for event in await namespace.events() if event["reason"] == "PodOverdue"]
    assert [event["message"] for event in forced] == [
        "pod job-1-0 has not terminated 30 s after its grace period, so node node-1 is considered lost; deleting the "
        "pod by force"
    ]
    await has_told(namespace, "Accepted", "AllWorkersRunning", "Disrupted", "PodOverdue")
    await leave(namespace)
