"""Devices of workers: how many processes follow from them, and what the built-in trainer computes on."""

from typing import Any

import pytest

from tests.builders import make_job, make_manifest, trainer_spec
from trainyard.admission import admit
from trainyard.estimate import estimate
from trainyard.protocol import constants
from trainyard.resolve import resolve, spec_problems
from trainyard.resource.devices import device_claims
from trainyard.resource.job import TrainingJob
from trainyard.sizing.fit import uses_gpus
from trainyard_operator.manifests.pod import build_pod

CLAIMED: dict[str, Any] = {
    "template": {
        "spec": {
            "resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "eight-gpus"}],
            "containers": [{"name": "worker", "resources": {"claims": [{"name": "gpus"}]}}],
        }
    }
}
"""Workers whose devices come from a resource claim."""


def limited(limits: dict[str, Any], trainer: dict[str, Any] | None = None, **workers: Any) -> TrainingJob:
    """A job that admission has let pass."""
    return admit(make_manifest(trainer=trainer, workers={"resources": {"limits": limits}, **workers}))


@pytest.mark.parametrize(
    ("limits", "procs"),
    [
        ({"nvidia.com/gpu": 8}, 8),
        ({"amd.com/gpu": "8"}, 8),
        ({"nvidia.com/mig-3g.40gb": 2}, 2),
        ({"habana.ai/gaudi": 8, "hugepages-2Mi": "4Gi"}, 8),
        ({"nvidia.com/gpu": 4, "rdma/hca": 4, "example.com/nic": 4}, 4),
        ({"rdma/hca": 4, "vpc.amazonaws.com/efa": 1, "memory": "8Gi", "cpu": 4, "ephemeral-storage": "1Gi"}, 1),
    ],
)
def test_each_accelerator_gets_a_process(limits: dict[str, Any], procs: int) -> None:
    assert limited(limits).spec.procs_per_worker == procs
    assert limited(limits, procsPerWorker=3).spec.procs_per_worker == 3


@pytest.mark.parametrize("limits", [{"example.com/npu": 4}, {"nvidia.com/gpu": 1, "amd.com/gpu": 1}])
def test_with_a_number_of_processes_any_device_is_a_programs_own_business(limits: dict[str, Any]) -> None:
    job = limited(limits, procsPerWorker=2)
    limits_of_pod = build_pod(job, 1, 0, trainer_image="t")["spec"]["containers"][0]["resources"]["limits"]
    assert limits_of_pod == limits


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-7g.80gb"])
def test_the_trainer_computes_on_gpus_and_its_workers_know_which(resource: str) -> None:
    job = limited({resource: 1}, trainer=trainer_spec(), gpuMemory="80Gi")
    assert resolve(job).precision == "bfloat16"
    env = {e["name"]: e.get("value") for e in build_pod(job, 1, 0, trainer_image="t")["spec"]["containers"][0]["env"]}
    assert env[constants.ENV_DEVICE] == resource
    found = estimate(job)
    assert found.workers.device == "gpu"
    assert found.training is not None
    assert found.training.fit.field == "spec.workers.gpuMemory"


def test_workers_without_a_gpu_are_promised_none() -> None:
    for job in (make_job(trainer=trainer_spec()), limited({"nvidia.com/gpu": 0}, trainer=trainer_spec())):
        env = {e["name"] for e in build_pod(job, 1, 0, trainer_image="t")["spec"]["containers"][0]["env"]}
        assert constants.ENV_DEVICE not in env


@pytest.mark.parametrize(
    ("limits", "device"),
    [({"habana.ai/gaudi": 8}, "habana.ai/gaudi"), ({"example.com/npu": 1}, "example.com/npu"), ({"cpu": 1}, "cpu")],
)
def test_a_plan_calls_a_device_by_its_name(limits: dict[str, Any], device: str) -> None:
    assert estimate(limited(limits, procsPerWorker=1)).workers.device == device


# --- dynamic resource allocation ------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [trainer_spec(), None], ids=["trainer", "command"])
def test_the_devices_of_a_claim_are_asked_for(trainer: dict[str, Any] | None) -> None:
    job = make_job(trainer=trainer, workers=CLAIMED)
    assert spec_problems(job) == [
        "spec.workers.procsPerWorker: auto does not know how many devices the resource claim gpus of the template has; "
        "set it to the number of processes in each worker"
    ]
    assert spec_problems(make_job(trainer=trainer, workers={**CLAIMED, "procsPerWorker": 8})) == []
    counted = {**CLAIMED, "resources": {"limits": {"nvidia.com/gpu": 8}}}
    assert spec_problems(make_job(trainer=trainer, workers=counted)) == [], "a claim for a network card, for example"


def test_the_devices_of_a_claim_are_gpus_for_the_trainer() -> None:
    manifest = make_manifest(
        trainer=trainer_spec(float8=True, precision="bfloat16", compile=True),
        workers={**CLAIMED, "procsPerWorker": 2, "gpuMemory": "80Gi"},
    )
    job = admit(manifest)
    assert uses_gpus(job.spec)
    pod = build_pod(job, 1, 0, trainer_image="t")["spec"]
    assert pod["resourceClaims"] == CLAIMED["template"]["spec"]["resourceClaims"]
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "gpus"}]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env[constants.ENV_DEVICE] == constants.DEVICE_CLAIM
    assert env["PET_NPROC_PER_NODE"] == "2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": {"gpuMemory": "80Gi"}}, "spec.workers.gpuMemory: needs workers with GPUs; "),
        ({"trainer": {"float8": True, "precision": "bfloat16", "compile": True}}, "spec.trainer.float8: needs GPUs"),
        (
            {"trainer": {"compile": True}, "parallelism": {"tensor": 2, "asyncTensor": True}},
            "spec.parallelism.asyncTensor: needs a tensor group of GPUs",
        ),
    ],
)
def test_what_needs_gpus_is_refused_where_neither_limits_nor_claims_have_any(
    fields: dict[str, Any], message: str
) -> None:
    """CEL does not see the template, so it lets pass what a claim could make right."""
    trainer, workers = trainer_spec(**fields.pop("trainer", {})), fields.pop("workers", {})

    def job(**more: Any) -> TrainingJob:
        return make_job(trainer=trainer, workers={"procsPerWorker": 2, **workers, **more}, **fields)

    (problem,) = spec_problems(job())
    assert problem.startswith(message)
    assert spec_problems(job(**CLAIMED)) == []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"resourceClaims": [{"name": "gpus"}]},
        {"containers": "none"},
        {"containers": [{"name": "side", "resources": {"claims": [{"name": "gpus"}]}}]},
        {"containers": [{"name": "worker", "resources": []}]},
        {"containers": [{"name": "worker", "resources": {"claims": "gpus"}}]},
    ],
)
def test_a_claim_counts_only_for_the_container_that_uses_it(spec: dict[str, Any]) -> None:
    assert device_claims(spec) == []


# --- shared memory --------------------------------------------------------------------------------------------


def test_shared_memory_counts_in_the_plan() -> None:
    def needed(**workers: Any) -> int:
        training = estimate(make_job(trainer=trainer_spec(), workers=workers)).training
        assert training is not None
        return training.fit.needed

    assert needed(sharedMemory="2Gi") == needed() + 2 * 2**30
    small = {"sharedMemory": "900Mi", "resources": {"limits": {"memory": "1Gi"}}}
    (problem,) = spec_problems(make_job(trainer=trainer_spec(), workers=small))
    assert problem.startswith("spec.workers.resources.limits.memory: a worker has 1.00Gi but needs about 1.")
    assert "; spec.workers.sharedMemory 900Mi" in problem


def test_shared_memory_above_the_limit_it_counts_to_is_refused() -> None:
    workers = {"sharedMemory": "16Gi", "resources": {"limits": {"memory": "8Gi"}}}
    assert spec_problems(make_job(workers=workers)) == [
        "spec.workers.sharedMemory: 16Gi is more than the memory limit 8Gi, to which it counts; lower it, or raise "
        "spec.workers.resources.limits.memory"
    ]


def test_shared_memory_that_is_too_small_for_checkpoints_is_warned_about() -> None:
    job = make_job(trainer=trainer_spec(), workers={"sharedMemory": "1Mi"}, checkpoint={"claim": {"size": "1Gi"}})
    (warning,) = estimate(job).warnings
    assert warning.startswith("spec.workers.sharedMemory: the volume at /dev/shm has 1.00Mi, but asynchronous checkpoi")
