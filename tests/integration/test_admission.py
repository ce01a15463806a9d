"""The CRD on a real API server: it is accepted, and its rules refuse invalid jobs with our messages.

These tests write the status themselves, so they use the cluster without an operator.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_manifest, trainer_spec
from tests.cluster import Cluster, ClusterError
from tests.support.faults import FAULTS, Fault
from tests.support.kube import Api, ApiRefusal, Namespace
from tests.support.spec_changes import Change, changes
from tests.support.specs import FULL_SPECS, MUTABLE_FIELDS
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import TrainingJobStatus

IMMUTABLE = (
    "spec: only suspend, activeDeadlineSeconds, schedulingTimeoutSeconds, cleanPodPolicy, ttlSecondsAfterFinished, "
    "workers.replicas and restartPolicy may change while the job is active; set suspend: true, wait for the condition "
    "Suspended, change it, set suspend: false"
)


def condition(kind: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "r", "lastTransitionTime": "2030-01-01T00:00:00Z"}


async def with_status(own_namespace: Namespace, **status: Any) -> None:
    await own_namespace.api.patch(own_namespace.jobs("job", "status"), {"status": status})


async def test_the_crd_is_established(own_api: Api) -> None:
    crd = await own_api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.trainyard.dev")
    conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
    assert (conditions["NamesAccepted"], conditions["Established"]) == ("True", "True")
    assert conditions.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
async def test_the_api_server_refuses_a_fault_with_the_message(own_api: Api, fault: Fault) -> None:
    with pytest.raises(ApiRefusal) as refused:
        await Namespace(own_api, "default").create_job(fault.manifest())
    assert refused.value.code in (400, 422)
    assert (fault.server or fault.message) in refused.value.message


async def test_an_update_is_validated_like_a_creation(own_namespace: Namespace) -> None:
    created = await own_namespace.create_job(make_manifest(trainer=trainer_spec()))
    for fault in FAULTS:
        manifest = fault.manifest()
        if fault.strict or "trainer" not in manifest["spec"]:
            continue
        with pytest.raises(ApiRefusal) as refused:
            await own_namespace.api.request("PUT", own_namespace.jobs("job"), {**created, "spec": manifest["spec"]})
        assert (fault.server or fault.message) in refused.value.message


async def test_stored_defaults_equal_those_of_the_types(own_namespace: Namespace) -> None:
    manifest = make_manifest(trainer=trainer_spec())
    stored = await own_namespace.create_job(manifest)
    assert stored["spec"] == TrainingJob.from_dict(manifest).spec.to_dict()
    # Tools compare the generation that the status was made for, so a status that was never written has one, too.
    assert stored["status"] == TrainingJobStatus().to_dict()


@pytest.mark.parametrize(
    ("resource", "number"),
    [
        *(("nvidia.com/gpu", number) for number in (8, "8", 0, "0")),
        ("amd.com/gpu", 4),
        ("nvidia.com/mig-1g.5gb", "1"),
        ("rdma/hca", 4),
    ],
)
async def test_rules_and_types_count_devices_alike(own_namespace: Namespace, resource: str, number: int | str) -> None:
    """A batch of this size suits that many ranks only, by the rules of the API server."""
    ranks = 2 * (int(number) or 1) if resource != "rdma/hca" else 2
    limits = {resource: number, "memory": "64Gi"}
    manifest = make_manifest(
        workers={"resources": {"limits": limits}}, trainer=trainer_spec(batch={"global": ranks, "micro": 1})
    )
    assert TrainingJob.from_dict(await own_namespace.create_job(manifest)).spec.world_size == ranks


async def test_a_program_may_have_any_device_whose_processes_are_given(own_namespace: Namespace) -> None:
    limits = {"example.com/npu": 4, "habana.ai/gaudi": 1}
    await own_namespace.create_job(make_manifest(workers={"procsPerWorker": 4, "resources": {"limits": limits}}))


async def test_the_largest_job_stays_within_the_cost_limit_of_the_rules(own_namespace: Namespace) -> None:
    await own_namespace.create_job(
        make_manifest(
            replicas=10_000,
            env=[{"name": f"V{i}", "value": "x"} for i in range(256)],
            command=["a"] * 256,
            args=["b" * 100] * 1024,
        )
    )
    await with_status(own_namespace, attempt=1)
    await own_namespace.edit({"suspend": True})


def test_kubectl_refuses_an_unknown_field(own_cluster: Cluster, own_namespace: Namespace) -> None:
    manifest = make_manifest(workers={"replica": 2})
    apply: list[str | Path] = [own_cluster.kubectl, "apply", "-n", own_namespace.name, "-f", "-"]
    manifest["metadata"].pop("namespace")
    with pytest.raises(ClusterError, match=r'unknown field "spec.workers.replica"'):
        own_cluster.run(apply, input=json.dumps(manifest))


async def test_kubectl_get_shows_the_columns(own_cluster: Cluster, own_namespace: Namespace) -> None:
    await own_namespace.create_job(make_manifest())
    progress = {"step": 42, "totalSteps": 100, "loss": 1.25, "tokensPerSecond": 12345.0, "mfu": 0.4, "etaSeconds": 60.0}
    await with_status(own_namespace, phase="Running", progress=progress, workers={"running": 2}, restarts=1, attempt=3)
    shown = own_cluster.run(
        [own_cluster.kubectl, "get", "tj", "-n", own_namespace.name, "-o", "wide"]
    ).stdout.splitlines()
    assert shown[0].split() == [
        "NAME",
        "PHASE",
        "STEP",
        "LOSS",
        "TOKENS/S",
        "WORKERS",
        "RESTARTS",
        "AGE",
        "ATTEMPT",
        "STEPS",
        "MFU",
        "ETA",
    ]
    *cells, _age, attempt, steps, mfu, eta = shown[1].split()
    assert cells == ["job", "Running", "42", "1.25", "12345", "2", "1"]
    assert (attempt, steps, mfu, eta) == ("3", "100", "0.4", "60")
    short = own_cluster.run([own_cluster.kubectl, "get", "tj", "-n", own_namespace.name]).stdout.splitlines()
    assert short[0].split() == ["NAME", "PHASE", "STEP", "LOSS", "TOKENS/S", "WORKERS", "RESTARTS", "AGE"]


def test_kubectl_explain_describes_the_fields(own_cluster: Cluster) -> None:
    text = own_cluster.run([own_cluster.kubectl, "explain", "tj.spec.workers.replicas"]).stdout
    assert "Number of worker pods." in text


# --- what may change while a job is active --------------------------------------------------------------------

CHANGES: dict[str, dict[str, Any]] = {
    "image": {"image": "example.com/other"},
    "command": {"command": ["other"]},
    "args": {"args": ["--new"]},
    "env": {"env": [{"name": "A", "value": "1"}]},
    "resources": {"workers": {"resources": {"limits": {"cpu": "2"}}}},
    "template": {"workers": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}},
    "procsPerWorker": {"workers": {"procsPerWorker": 2}},
    "imagePullPolicy": {"imagePullPolicy": "Always"},
    "imagePullSecrets": {"imagePullSecrets": [{"name": "s"}]},
    "trainer for command": {"command": None, "image": None, "trainer": trainer_spec()},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_an_immutable_field_changes_only_while_the_job_is_suspended(
    own_namespace: Namespace, change: dict[str, Any]
) -> None:
    await own_namespace.create_job(make_manifest())
    await own_namespace.edit(CHANGES["env"])  # no attempt yet: anything may change
    await own_namespace.edit({"env": None})
    await with_status(own_namespace, attempt=1, conditions=[condition("Running")])
    with pytest.raises(ApiRefusal) as refused:
        await own_namespace.edit(change)
    assert IMMUTABLE in refused.value.message
    with pytest.raises(ApiRefusal) as refused:
        await own_namespace.edit({**change, "suspend": True})
    assert IMMUTABLE in refused.value.message, "suspending is not being suspended"
    await own_namespace.edit({"suspend": True})
    with pytest.raises(ApiRefusal):
        await own_namespace.edit(change)
    await with_status(own_namespace, attempt=1, conditions=[condition("Suspended")])
    await own_namespace.edit(change)
    await with_status(own_namespace, attempt=2, conditions=[condition("Suspended", "False")])
    with pytest.raises(ApiRefusal):
        await own_namespace.edit({"image": "example.com/third"})


@pytest.mark.parametrize("status", [{"attempt": 1}, {"attempt": 0}])
async def test_a_job_that_has_ended_cannot_be_changed(own_namespace: Namespace, status: dict[str, Any]) -> None:
    await own_namespace.create_job(make_manifest())
    await with_status(own_namespace, **status, conditions=[condition("Failed")])
    with pytest.raises(ApiRefusal) as refused:
        await own_namespace.edit({"image": "example.com/other"})
    ended = "spec: the job has ended, and a change would have no effect; delete it and create it again"
    assert ended in refused.value.message
    await own_namespace.edit({"suspend": True})  # a mutable field, without effect


def is_mutable(change: Change) -> bool:
    return any(change.field == field or change.field.startswith(f"{field}.") for field in MUTABLE_FIELDS)


async def refusal(own_namespace: Namespace, job: dict[str, Any], spec: dict[str, Any]) -> str:
    """Return why the API server would refuse the job with another spec; empty if it would accept it."""
    try:
        await own_namespace.api.request("PUT", own_namespace.jobs("job"), {**job, "spec": spec}, dryRun="All")
    except ApiRefusal as refused:
        return refused.message
    return ""


@pytest.mark.parametrize("spec", FULL_SPECS.values(), ids=FULL_SPECS.keys())
async def test_every_field_is_immutable_while_the_job_is_active_unless_it_is_marked(
    own_namespace: Namespace, spec: dict[str, Any]
) -> None:
    """All fields of the schema: each is changed, removed if it is optional, and added if it is absent."""
    await own_namespace.create_job({**make_manifest(), "spec": spec})
    await with_status(own_namespace, attempt=1, conditions=[condition("Running")])
    job = await own_namespace.job()
    refused = [(c, IMMUTABLE in await refusal(own_namespace, job, c.spec)) for c in changes(job["spec"])]
    assert [f"{c}: {'refused' if so else 'accepted'}" for c, so in refused if so == is_mutable(c)] == []
    assert len({change.path for change, _ in refused}) > 100
    # Control: the same changes pass this rule once the job is suspended.
    await with_status(own_namespace, conditions=[condition("Suspended")])
    job = await own_namespace.job()
    assert [str(c) for c in changes(job["spec"]) if IMMUTABLE in await refusal(own_namespace, job, c.spec)] == []


@pytest.mark.parametrize("spec", FULL_SPECS.values(), ids=FULL_SPECS.keys())
async def test_marked_fields_change_while_the_job_is_active(own_namespace: Namespace, spec: dict[str, Any]) -> None:
    await own_namespace.create_job({**make_manifest(), "spec": spec})
    await with_status(own_namespace, attempt=1, conditions=[condition("Running")])
    changes = (
        *({"suspend": True}, {"workers": {"replicas": 4}}, {"restartPolicy": {"maxRestarts": 9}}),
        *({"activeDeadlineSeconds": 9}, {"ttlSecondsAfterFinished": 9}, {"cleanPodPolicy": "None"}),
        {"schedulingTimeoutSeconds": None},
    )
    for change in changes:
        before = (await own_namespace.job())["metadata"]["generation"]
        assert (await own_namespace.edit(change))["metadata"]["generation"] == before + 1


async def test_scaling_is_validated_by_the_rules(own_namespace: Namespace) -> None:
    await own_namespace.create_job(make_manifest(trainer=trainer_spec()))
    scale = await own_namespace.api.get(own_namespace.jobs("job", "scale"))
    assert scale["spec"]["replicas"] == 2
    scale["spec"]["replicas"] = 3
    with pytest.raises(
        ApiRefusal, match=r"spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks"
    ):
        await own_namespace.api.request("PUT", own_namespace.jobs("job", "scale"), scale)
    scale["spec"]["replicas"] = 4
    await own_namespace.api.request("PUT", own_namespace.jobs("job", "scale"), scale)
    assert (await own_namespace.job())["spec"]["workers"]["replicas"] == 4
