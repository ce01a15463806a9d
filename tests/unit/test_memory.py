"""Memory of the operator: what a pod and a finished job cost in its cache."""

import json
import tracemalloc
from typing import Any

import pytest

from tests.builders import NOW, TRAINER_IMAGE, make_job, make_pod, trainer_spec
from tests.support import kubelet
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.cache import Cache, CachedPod

PODS = 300
LIMIT = 5 * 1024


def real_pod(job: TrainingJob, index: int, status: kubelet.Status) -> dict[str, Any]:
    """A pod as an API server returns it: with managedFields, and each object with strings of its own."""
    pod = make_pod(job, index, status=status, uid=f"0c5a1b2e-5d0f-4c0c-8a43-{index:012}", version=index + 1)
    managed: dict[str, Any] = {"f:spec": {f"f:field-{i}": {"f:value": {}} for i in range(60)}}
    pod["metadata"]["managedFields"] = [{"manager": "trainyard-operator", "fieldsV1": managed}] * 2
    pod["spec"]["containers"][0]["image"] = TRAINER_IMAGE
    found: dict[str, Any] = json.loads(json.dumps(pod))
    return found


@pytest.mark.parametrize(
    "status",
    [
        kubelet.scheduled(),
        kubelet.running(NOW),
        kubelet.ended(NOW, 1, message="Traceback (most recent call last):\n" + "x" * 2000),
        kubelet.unschedulable("0/3000 nodes are available: " + "insufficient nvidia.com/gpu, " * 30),
        kubelet.ended(NOW, 1, message="x" * 1_000_000),
    ],
    ids=["scheduled", "running", "failed", "unschedulable", "message of a megabyte"],
)
def test_a_pod_costs_at_most_5_kib(status: kubelet.Status, capsys: pytest.CaptureFixture[str]) -> None:
    job, cache = make_job(replicas=PODS, trainer=trainer_spec(batch={"global": PODS})), Cache()
    cache.put_job(job)
    count = PODS if len(str(status)) < 10_000 else 50
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [CachedPod.read(real_pod(job, index, status)) for index in range(count)]
        cache.replace([job], [pod for pod in kept if pod is not None], 10**6)
        del kept
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache.workers(job.key)) == count
    cost = (after - before) / count
    with capsys.disabled():
        print(f" {cost:.0f} bytes", end="")
    assert cost < LIMIT
