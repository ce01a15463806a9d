"""An elastic group on a real API server: capacity is missing, probed and found. The tests play the kubelet."""

import pytest

from tests.builders import elastic, make_manifest
from tests.support.fake_kubelet import finish_deletion, is_unschedulable, recording, run_all
from tests.support.kube import ApiRefusal, Namespace, eventually

pytestmark = pytest.mark.usefixtures("operator")


async def test_a_group_uses_the_capacity_there_is_and_more_once_there_is_more(namespace: Namespace) -> None:
    """Under the restricted security profile, which holds for placeholders, too."""
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await namespace.api.patch(f"/api/v1/namespaces/{namespace.name}", labels)
    async with recording(namespace) as recorder:
        await namespace.create_job(make_manifest(replicas=2, **elastic(resizeAfterSeconds=1)))
        await namespace.has_pods("job-1-0", "job-1-1")
        await run_all(namespace, "job-1-0")
        await is_unschedulable(namespace, "job-1-1")
        await namespace.has_condition("Degraded", "True", "Resized")
        await finish_deletion(namespace, "job-1-0")
        await namespace.has_pods("job-2-0")
        await run_all(namespace, "job-2-0")
        status = await namespace.has_phase("Running")
        # The operator may have probed for capacity already, and recorded when.
        assert (status["elastic"]["replicas"], status["workers"]["desired"]) == (1, 1)
        config = await namespace.api.get(namespace.core("configmaps", "job"))
        assert '"worldSize": 1,' in config["data"]["config.json"]
        await namespace.has_pods("job-2-0", "job-2-placeholder-0")
        await run_all(namespace, "job-2-placeholder-0")
        await namespace.has_condition("Degraded", "False", "Resized")
        await finish_deletion(namespace, "job-2-0")
        await finish_deletion_once_asked(namespace, "job-2-placeholder-0")
        await namespace.has_pods("job-3-0", "job-3-1")
        await run_all(namespace, "job-3-0", "job-3-1")
        status = await namespace.has_phase("Running")
    assert (status["attempt"], status["restartsCounted"], status["workers"]["desired"]) == (3, 0, 2)
    config = await namespace.api.get(namespace.core("configmaps", "job"))
    assert '"worldSize": 2,' in config["data"]["config.json"]
    recorder.check_invariants(limit=3)


async def finish_deletion_once_asked(namespace: Namespace, name: str) -> None:
    """Remove a pod once the operator has requested its deletion, as its kubelet would."""

    async def check() -> None:
        assert "deletionTimestamp" in (await namespace.pods())[name]["metadata"]

    await eventually(check)
    await finish_deletion(namespace, name)


async def test_scale_keeps_to_the_limits(namespace: Namespace) -> None:
    await namespace.create_job(make_manifest(replicas=2, **elastic(2, maxReplicas=3)))
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0", "job-1-1")
    await namespace.has_phase("Running")
    scale = await namespace.api.get(namespace.jobs("job", "scale"))
    del scale["metadata"]["resourceVersion"]  # the operator writes, too
    for replicas, fault in ((1, "must be at least spec.elastic.minReplicas"), (4, "at most spec.elastic.maxReplicas")):
        wanted = {**scale, "spec": {"replicas": replicas}}
        with pytest.raises(ApiRefusal, match=fault):
            await namespace.api.request("PUT", namespace.jobs("job", "scale"), wanted)
    await namespace.edit({"workers": {"replicas": 3}})
    await namespace.has_condition("Degraded", "True", "Resized")
    assert set(await namespace.pods()) == {"job-1-0", "job-1-1"}, "the group continues until there is capacity"
