"""A real HorizontalPodAutoscaler changes the size of an elastic job, by the use of its pods that a stub reports."""

from pathlib import Path

import pytest

from tests.builders import elastic, make_manifest
from tests.cluster import Cluster
from tests.support.controllers import controllers
from tests.support.fake_kubelet import fake_kubelet
from tests.support.kube import Api, Namespace, Object, eventually
from tests.support.metrics_api import metrics_api

AUTOSCALER: Object = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "job"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "name": "job"},
        "minReplicas": 1,
        "maxReplicas": 5,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}},
            }
        ],
        "behavior": {
            "scaleDown": {"stabilizationWindowSeconds": 0},
            "scaleUp": {"policies": [{"type": "Pods", "value": 10, "periodSeconds": 1}]},
        },
    },
}


@pytest.mark.usefixtures("operator")
async def test_an_autoscaler_changes_the_size_of_an_elastic_job(
    cluster: Cluster, api: Api, namespace: Namespace, tmp_path: Path
) -> None:
    autoscalers = f"/apis/autoscaling/v2/namespaces/{namespace.name}/horizontalpodautoscalers"
    sync = ("--horizontal-pod-autoscaler-sync-period=1s",)

    async def has_size(replicas: int) -> Object:
        async def check() -> Object:
            job, autoscaler = await namespace.job(), await api.get(f"{autoscalers}/job")
            assert job["spec"]["workers"]["replicas"] == replicas, autoscaler["status"]
            assert job["status"]["phase"] == "Running"
            assert job["status"]["workers"]["running"] == replicas, job["status"]
            assert autoscaler["status"].get("currentReplicas") == replicas, autoscaler["status"]
            return job

        return await eventually(check)

    async def cannot_scale() -> str:
        async def check() -> str:
            conditions = (await api.get(f"{autoscalers}/job"))["status"]["conditions"]
            found = {c["type"]: c for c in conditions}["AbleToScale"]
            assert (found["status"], found["reason"]) == ("False", "FailedUpdateScale"), conditions
            message: str = found["message"]
            return message

        return await eventually(check)

    async with metrics_api(api, tmp_path) as metrics, fake_kubelet(namespace):
        await namespace.create_job(make_manifest(replicas=2, **elastic(resizeAfterSeconds=1)))
        await namespace.has_phase("Running")
        with controllers(cluster, tmp_path / "log", "horizontal-pod-autoscaler-controller", arguments=sync):
            metrics.memory = 200
            await api.post(autoscalers, AUTOSCALER)
            await has_size(2)
            metrics.memory = 300
            await has_size(3)
            metrics.memory = 90
            await has_size(1)
            # Five workers cannot divide the batch of 12.
            metrics.memory = 500
            message = await cannot_scale()
            assert "data-parallel" in message
            metrics.memory = 400
            job = await has_size(4)
        assert set(metrics.selectors) == {job["status"]["selector"]}
        assert (job["status"]["restartsCounted"], job["status"]["disruptions"]) == (0, 0)
