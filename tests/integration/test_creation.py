"""Creation of pods on a real API server: quotas, malformed templates, namespaces that end."""

import asyncio
import time
from typing import Any

import pytest

from tests.builders import make_manifest, trainer_spec
from tests.support.fake_kubelet import run_all
from tests.support.kube import Namespace, Object, eventually
from tests.support.operator import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")


async def seconds_to_pods(namespace: Namespace, name: str) -> float:
    """Create a job, and return the seconds until both of its pods exist."""
    started = time.monotonic()
    await namespace.create_job(make_manifest(name))

    async def check() -> None:
        assert {f"{name}-1-0", f"{name}-1-1"} <= set(await namespace.pods())

    await eventually(check)
    return time.monotonic() - started


async def requests(operator: OperatorProcess, code: int) -> float:
    """Creations that the API server has answered with a code, by the operator's own metrics."""
    start = f'trainyard_operator_api_requests_total{{code="{code}",verb="POST"}} '
    _, page = await operator.page("/metrics")
    return sum(float(line.removeprefix(start)) for line in page.splitlines() if line.startswith(start))


async def says(namespace: Namespace, words: str) -> Object:
    """Wait for a condition with some words in its message; returns the status."""

    async def check() -> Object:
        status: Object = (await namespace.job()).get("status", {})
        messages = [c["message"] for c in status.get("conditions", ())]
        assert any(words in message for message in messages), messages
        return status

    return await eventually(check)


async def test_a_group_that_a_quota_stops_half_way_costs_few_requests_and_delays_no_other_job(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    quiet = max([await seconds_to_pods(namespace, f"quiet-{number}") for number in range(3)])
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": {"hard": {"pods": "20"}, "scopeSelector": {"matchExpressions": [LOW]}},
    }
    await namespace.api.post(namespace.core("resourcequotas"), quota)
    counted = {"status": {"hard": {"pods": "20"}, "used": {"pods": "0"}}}  # what the quota's controller would write
    await namespace.api.patch(namespace.core("resourcequotas", "few", "status"), counted)
    template = {"template": {"spec": {"priorityClassName": "low"}}}
    await namespace.api.request("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", CLASS)
    try:
        before = await requests(operator, 403)
        await namespace.create_job(make_manifest(replicas=10_000, workers=template))
        await says(namespace, "exceeded quota: few")
        busy = max([await seconds_to_pods(namespace, f"busy-{number}") for number in range(3)])
        await asyncio.sleep(3)
        refused = await requests(operator, 403) - before
    finally:
        await namespace.api.delete("/apis/scheduling.k8s.io/v1/priorityclasses/low")
    assert len([name for name in await namespace.pods() if name.startswith("job-")]) == 20
    # 1, 2, 4, 8 and up to 16 at a time until the first refusal, then one for each try: 0.05 s, 0.1 s, 0.2 s, ...
    assert refused <= 32 + 12, "one request for each try"
    assert busy <= 2 * quiet + 0.5, f"{busy:.2f} s instead of {quiet:.2f} s"


LOW = {"scopeName": "PriorityClass", "operator": "In", "values": ["low"]}
CLASS = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "low"}, "value": 1}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"containers": [{"image": "y"}]}, "spec.workers.template.spec.containers[0].name: is required"),
        ({"imagePullSecrets": ["registry"]}, "spec.workers.template.spec.imagePullSecrets: must be a list of objects"),
        ({"terminationGracePeriodSeconds": "2m"}, "spec.workers.template.spec.terminationGracePeriodSeconds: must be"),
        ({"volumes": [{"name": "trainyard-tmp", "emptyDir": {}}]}, "names that start with trainyard- are reserved"),
        # What the API server says itself: an unknown field, a wrong type, a wrong value.
        ({"nodeselector": {"pool": "gpu"}}, 'unknown field "spec.nodeselector"'),
        ({"nodeSelector": ["gpu"]}, "nodeSelector"),
        ({"dnsPolicy": "Nowhere"}, "spec.dnsPolicy"),
    ],
    ids=["name", "secrets", "grace", "reserved", "typo", "type", "value"],
)
async def test_a_malformed_template_is_reported_and_creates_no_pod(
    namespace: Namespace, operator: OperatorProcess, template: dict[str, Any], words: str
) -> None:
    manifest = make_manifest(
        trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}}, workers={"template": {"spec": template}}
    )
    await namespace.create_job(manifest)
    await says(namespace, words)
    assert await namespace.pods() == {}
    mine = [line for line in operator.lines if f"{namespace.name}/job" in line["message"]]
    assert not [line for line in mine if "unexpected error" in line["message"]]


async def test_what_the_operator_builds_from_a_full_template_is_accepted_by_strict_validation(
    namespace: Namespace,
) -> None:
    scratch: list[Object] = [{"name": name, "emptyDir": {}} for name in ("tmp", "config", "shm", "checkpoints")]
    worker = {
        "name": "worker",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp/"}, {"name": "shm", "mountPath": "/dev/shm"}],
        "ports": [{"name": "debug", "containerPort": 5678}],
        "env": [{"name": "TEAM", "value": "a"}],
        "readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 600},
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "resources": {"limits": {"rdma/nic": 1}},
    }
    sidecar = {
        "name": "logs",
        "image": "example.com/logs",
        "volumeMounts": [{"name": "trainyard-checkpoints", "mountPath": "/saved", "readOnly": True}],
    }
    template = {
        "hostNetwork": True,
        "securityContext": {"fsGroup": 2000},
        "volumes": scratch,
        "containers": [sidecar, worker],
        "imagePullSecrets": [{"name": "registry"}],
    }
    await namespace.create_job(
        make_manifest(
            replicas=1,
            trainer=trainer_spec(),
            checkpoint={"claim": {"size": "1Gi"}},
            env=[{"name": "RUN", "value": "$(TRAINYARD_JOB_NAME)-$(TEAM)"}],
            workers={"template": {"spec": template}},
        )
    )
    pod = (await namespace.has_pods("job-1-0"))["job-1-0"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {"tmp", "config", "shm", "checkpoints", "trainyard-checkpoints", "trainyard-config"} <= set(volumes)
    assert volumes["config"]["emptyDir"] == {}
    assert pod["spec"]["securityContext"]["fsGroup"] == 2000
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert (pod["spec"]["dnsPolicy"], pod["spec"]["enableServiceLinks"]) == ("ClusterFirstWithHostNet", False)
    ports = {p["name"]: p["hostPort"] for p in pod["spec"]["containers"][0]["ports"]}
    own = {"metrics": 9400, "launcher": 9401, "rendezvous": 29500}
    assert ports == {"debug": 5678, **own}, "the scheduler keeps them apart on a node"


async def test_a_namespace_that_is_deleted_under_a_job_gets_no_pod_again(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    await namespace.create_job(make_manifest(restartPolicy={"backoff": {"initialSeconds": 0}}))
    await namespace.has_pods("job-1-0", "job-1-1")
    await run_all(namespace, "job-1-0", "job-1-1")
    await namespace.has_phase("Running")
    await namespace.api.delete(f"/api/v1/namespaces/{namespace.name}")
    before = await requests(operator, 403)
    # What the controller of namespaces does: pods go in any order, before the job.
    await namespace.api.delete(namespace.core("pods"), gracePeriodSeconds=0)
    await namespace.has_phase("Restarting")
    await asyncio.sleep(2)
    assert await namespace.pods() == {}
    assert await requests(operator, 403) - before <= 6, "no storm of refused requests"
    mine = [line for line in operator.lines if f"{namespace.name}/job" in line["message"]]
    assert not [line for line in mine if "next try" in line["message"] and line["level"] == "warning"]


async def test_in_a_namespace_that_ends_nothing_is_created_and_nothing_retried(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    await namespace.create_job(make_manifest(suspend=True))
    await namespace.has_phase("Suspended")
    await namespace.api.delete(f"/api/v1/namespaces/{namespace.name}")  # no controller empties it here
    before = await requests(operator, 403)
    await namespace.edit({"suspend": False})

    async def check() -> None:
        assert await requests(operator, 403) > before

    await eventually(check)
    await asyncio.sleep(2)
    assert await requests(operator, 403) - before <= 3, "the Service and events, once"
    mine = [line for line in operator.lines if f"{namespace.name}/job" in line["message"]]
    assert not [line for line in mine if "next try" in line["message"] and line["level"] == "warning"]
