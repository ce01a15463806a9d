"""The life of a job on a real API server, with a real operator: what `tests/conformance` cannot say by the API alone.

The tests play the kubelet.
"""

import asyncio
from pathlib import Path

import pytest

from tests.builders import make_manifest, trainer_spec
from tests.cluster import Cluster
from tests.support.fake_kubelet import end_all, recording, run_all
from tests.support.kube import Namespace, eventually
from tests.support.operator import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")


async def running(namespace: Namespace, *, attempt: int = 1, replicas: int = 2) -> list[str]:
    """Wait for the pods of an attempt and let them run. Returns their names."""
    names = [f"job-{attempt}-{index}" for index in range(replicas)]
    await namespace.has_pods(*names)
    await run_all(namespace, *names)
    await namespace.has_phase("Running")
    return names


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


async def test_kubectl_waits_for_the_end_of_a_job(cluster: Cluster, namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(restartPolicy={"maxRestarts": 0}))
    names = await running(namespace)
    wait: list[str | Path] = [cluster.kubectl, "wait", "tj/job", "--for=condition=Finished", "--timeout=30s"]
    waiting = asyncio.create_task(asyncio.to_thread(cluster.run, [*wait, "-n", namespace.name]))
    await end_all(namespace, names[1], code=1)
    assert "condition met" in (await waiting).stdout


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
