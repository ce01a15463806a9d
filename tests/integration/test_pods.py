"""Pods in states that a cluster shows, on a real API server with a real operator. The tests play the kubelet."""

import pytest

from tests.builders import make_manifest
from tests.support import kubelet
from tests.support.fake_kubelet import end_all, fake_kubelet, finish_deletion, now, report, run_all
from tests.support.kube import Namespace, eventually

pytestmark = pytest.mark.usefixtures("operator")

ONCE = {"maxRestarts": 0, "backoff": {"initialSeconds": 0}}


async def running(namespace: Namespace) -> list[str]:
    names = ["job-1-0", "job-1-1"]
    await namespace.has_pods(*names)
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    return names


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (1, "Failed")])
async def test_a_finished_job_keeps_no_pod_that_a_sidecar_keeps_alive(
    namespace: Namespace, code: int, phase: str
) -> None:
    await namespace.create_job(make_manifest(restartPolicy=ONCE))
    names = await running(namespace)
    async with fake_kubelet(namespace):
        await end_all(namespace, names[1], code=code)
        await report(namespace, names[0], kubelet.beside_sidecar(kubelet.ended(now(), code)))
        await namespace.has_phase(phase)
        await namespace.has_pods(names[1])


async def test_a_failed_init_container_is_named(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(restartPolicy=ONCE))
    await namespace.has_pods("job-1-0", "job-1-1")
    await report(namespace, "job-1-0", kubelet.init_failed(now(), 3))
    failure = (await namespace.has_phase("Failed"))["lastFailure"]
    assert (failure["container"], failure["exitCode"], failure["reason"]) == ("setup", 3, "InitContainerFailed")


async def test_the_next_attempt_avoids_a_node_that_refused_a_pod(namespace: Namespace) -> None:
    """The API server checks the affinity, which names nodes by a field."""
    await namespace.create_job(make_manifest(restartPolicy=ONCE))
    await namespace.has_pods("job-1-0", "job-1-1")
    await report(namespace, "job-1-0", kubelet.refused("OutOfnvidia.com/gpu"))
    await namespace.has_condition("Restarting", "True", "Disrupted")
    await finish_deletion(namespace, "job-1-1")
    pods = await namespace.has_pods("job-2-0", "job-2-1")
    status = (await namespace.job())["status"]
    assert (status["refusingNodes"], status["restartsCounted"], status["disruptions"]) == (["node-1"], 0, 1)
    for pod in pods.values():
        [term] = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]


async def test_a_pod_evicted_for_its_own_limit_counts(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(restartPolicy=ONCE))
    names = await running(namespace)
    await report(namespace, names[0], kubelet.over_its_limit(now()))
    assert (await namespace.has_phase("Failed"))["lastFailure"]["reason"] == "StorageLimitExceeded"


async def test_a_worker_that_has_succeeded_may_lose_its_pod(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(restartPolicy=ONCE))
    names = await running(namespace)
    await end_all(namespace, names[0])

    async def remembered() -> None:
        assert (await namespace.job())["status"].get("succeededIndexes") == "0"

    await eventually(remembered)
    await finish_deletion(namespace, names[0])
    await namespace.has_pods(names[1])
    await end_all(namespace, names[1])
    status = await namespace.has_phase("Succeeded")
    assert (status["attempt"], status["restarts"], status["workers"]["succeeded"]) == (1, 0, 2)


async def test_an_image_name_that_is_malformed_fails_the_job_at_once(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest())
    await namespace.has_pods("job-1-0", "job-1-1")
    await report(namespace, "job-1-0", kubelet.waiting("InvalidImageName", "couldn't parse image name"))
    await namespace.has_condition("Failed", "True", "ContainerCannotStart")
