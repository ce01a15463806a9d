"""What memory an estimate counts besides the training of a rank, and what follows from the memory in the spec."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from tests.builders import make_job, trainer_spec
from trainyard.config import MemoryUse
from trainyard.estimate import Estimate, estimate
from trainyard.resolve import resolve, spec_problems
from trainyard.resource.job import TrainingJob
from trainyard.sizing.fit import fit, shared_memory_bytes
from trainyard.sizing.process_memory import CUDA_HOST_BYTES, LAUNCHER_BYTES, RANK_BYTES, WRITER_BYTES
from trainyard_cli.views.estimate import print_estimate

GiB = 2**30
FSDP: dict[str, Any] = {"data": {"mode": "fsdp"}}
CHECKPOINT: dict[str, Any] = {"claim": {"size": "1Gi"}}
LLAMA_8B: dict[str, Any] = {
    "model": {"name": "llama", "preset": "8b"},
    "data": {"source": "text", "path": "/data", "tokenizer": "bpe", "vocabSize": 128_256, "sequenceLength": 8192},
    "precision": "bfloat16",
    "activationCheckpointing": "selective",
}


def gpus(host: str | None = None, gpu: str | None = "80Gi", checkpoint: Any = None, **trainer: Any) -> TrainingJob:
    """An 8B model on one worker with eight GPUs."""
    limits = {"nvidia.com/gpu": 8} | ({"memory": host} if host else {})
    spec = trainer_spec(**{**LLAMA_8B, "batch": {"global": 8, "micro": 1}, **trainer})
    workers = {"resources": {"limits": limits}} | ({"gpuMemory": gpu} if gpu else {})
    more = {"checkpoint": checkpoint} if checkpoint else {}
    return make_job(replicas=1, workers=workers, parallelism=FSDP, trainer=spec, **more)


def cpus(memory: str | None = None, ranks: int = 2, checkpoint: Any = None, **spec: Any) -> TrainingJob:
    """A worker with some ranks on its CPUs."""
    resources = {"limits": {"memory": memory}} if memory else {}
    more = {"checkpoint": checkpoint} if checkpoint else {}
    trainer = trainer_spec(**spec.pop("trainer", {}))
    workers = {"procsPerWorker": ranks, "resources": resources}
    return make_job(replicas=1, workers=workers, trainer=trainer, **more, **spec)


def found(job: TrainingJob) -> Estimate:
    return estimate(job)


# --- checkpoints ------------------------------------------------------------------------------------------------


def test_an_asynchronous_checkpoint_needs_a_second_copy_of_the_state_and_a_process_for_each_rank() -> None:
    without, waiting, copied = (
        found(cpus(checkpoint=checkpoint)).training for checkpoint in (None, {**CHECKPOINT, "async": False}, CHECKPOINT)
    )
    assert without is not None
    assert waiting is not None
    assert copied is not None
    assert waiting.fit == without.fit
    state = without.fit.memory.weights + without.fit.memory.optimizer
    assert copied.fit.memory.checkpoint == state
    assert copied.fit.needed == without.fit.needed + 2 * (state + WRITER_BYTES)


def test_a_parameter_server_copies_nothing_for_a_checkpoint() -> None:
    training = found(cpus(ranks=1, checkpoint=CHECKPOINT, parallelism={"data": {"mode": "parameterServer"}})).training
    assert training is not None
    assert training.fit.memory.checkpoint == 0


def test_a_worker_without_memory_for_the_copy_is_refused_and_told_so() -> None:
    enough = fit(cpus("4Gi").spec, resolve(cpus("4Gi"))).needed // 2**20 + 1
    (problem,) = spec_problems(cpus(f"{enough}Mi", checkpoint=CHECKPOINT))
    assert problem.startswith("spec.workers.resources.limits.memory: a worker has ")
    assert "set spec.checkpoint.async: false (then about " in problem
    assert spec_problems(cpus(f"{enough}Mi", checkpoint={**CHECKPOINT, "async": False})) == []


def test_host_memory_of_workers_with_gpus_holds_the_copies_of_their_state() -> None:
    training = found(gpus("256Gi", checkpoint=CHECKPOINT)).training
    assert training is not None
    assert training.host is not None
    each = 12 * training.parameters // 8
    assert training.host.memory.checkpoint == pytest.approx(each, rel=0.001)
    processes = LAUNCHER_BYTES + 8 * (RANK_BYTES + WRITER_BYTES + CUDA_HOST_BYTES)
    assert training.host.needed == pytest.approx(12 * training.parameters + processes, rel=0.001)
    assert training.host.fits is True
    assert training.fit.memory.checkpoint == 0


def test_workers_with_gpus_but_too_little_host_memory_are_refused() -> None:
    (problem,) = spec_problems(gpus("64Gi", checkpoint=CHECKPOINT))
    assert problem.startswith("spec.workers.resources.limits.memory: a worker has 64.0Gi but needs about 101Gi")
    assert "checkpoint 11.2Gi" in problem
    assert problem.endswith(
        "or set spec.checkpoint.async: false, with which training waits for each checkpoint (then about 8.78Gi)"
    )
    assert spec_problems(gpus("64Gi", checkpoint={**CHECKPOINT, "async": False})) == []


def test_without_a_limit_the_need_for_host_memory_is_shown() -> None:
    training = found(gpus(checkpoint=CHECKPOINT)).training
    assert training is not None
    assert training.host is not None
    assert (training.host.available, training.host.fits) == (None, None)
    assert training.host.needed > 90 * GiB


def test_the_copies_of_a_worker_are_those_of_all_its_ranks() -> None:
    job = gpus(checkpoint=CHECKPOINT)
    training = found(job).training
    assert training is not None
    assert shared_memory_bytes(resolve(job), 8) == pytest.approx(12 * training.parameters, rel=0.001)
    assert shared_memory_bytes(resolve(gpus()), 8) == 0


# --- gradients under accumulation -------------------------------------------------------------------------------


def test_gradients_are_sharded_after_each_micro_batch_unless_all_of_them_surely_fit() -> None:
    def use(**job: Any) -> str:
        return resolve(gpus(**job)).memory_use.gradients

    many = {"batch": {"global": 256, "micro": 1}}
    assert use(gpu="100Gi", **many) == "complete"
    assert use(gpu="80Gi", **many) == "sharded"
    assert use(gpu=None, **many) == "sharded"


def test_accumulation_needs_little_more_memory_than_one_micro_batch() -> None:
    one, many = (found(gpus(gpu=None, batch={"global": size, "micro": 1})).training for size in (8, 256))
    assert one is not None
    assert many is not None
    shard = 4 * one.parameters / 8
    assert many.fit.needed - one.fit.needed == pytest.approx(shard, rel=0.01)
    assert spec_problems(gpus(gpu="60Gi", batch={"global": 256, "micro": 1})) == []


@pytest.mark.parametrize("parallelism", [{}, {"tensor": 2}, {**FSDP, "pipeline": {"stages": 2}}])
def test_layouts_that_hold_all_gradients_anyway_have_no_choice(parallelism: dict[str, Any]) -> None:
    ranks = 4 if "pipeline" in parallelism else 2
    trainer = {"batch": {"global": 8, "micro": 1}}
    job = cpus("64Gi", ranks=ranks, parallelism=parallelism, trainer=trainer)
    config = resolve(job)
    assert config.memory_use.gradients == "sharded"
    other = config.replace(memory_use=config.memory_use.replace(gradients="complete"))
    assert fit(job.spec, config) == fit(job.spec, other)


# --- freed memory on CPUs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "parallelism", "keeps"),
    [(None, {}, True), ("1Gi", {}, True), ("750Mi", {}, False), ("2Gi", FSDP, True), ("1Gi", FSDP, False)],
)
def test_freed_memory_is_kept_where_there_is_enough(
    memory: str | None, parallelism: dict[str, Any], keeps: bool
) -> None:
    assert resolve(cpus(memory, parallelism=parallelism)).memory_use.keep_freed is keeps


def test_a_small_parameter_server_returns_freed_memory() -> None:
    def job(server: str) -> TrainingJob:
        resources = {"resources": {"limits": {"memory": server}}}
        return cpus(ranks=1, parallelism={"data": {"mode": "parameterServer"}}, parameterServer=resources)

    assert resolve(job("4Gi")).memory_use.keep_freed is True
    assert resolve(job("450Mi")).memory_use.keep_freed is False


def test_an_older_configuration_has_the_defaults() -> None:
    config = resolve(cpus())
    body = {name: value for name, value in config.to_dict().items() if name != "memoryUse"}
    assert type(config).model_validate(body).memory_use == MemoryUse()


# --- warnings ---------------------------------------------------------------------------------------------------


def test_attention_without_a_fast_kernel_holds_all_scores_and_is_warned_about() -> None:
    full, half = found(gpus(precision="float32", batch={"global": 8, "micro": 1})), found(gpus())
    assert full.training is not None
    assert half.warnings == ()
    (warning,) = full.warnings
    # 32 heads x 8192 x 8192 scores of 4 bytes.
    assert warning.startswith("spec.trainer.precision: in float32 PyTorch has no fast attention for grouped queries")
    assert "each layer holds 8.00Gi of attention scores" in warning
    assert full.training.fit.fits is False


def test_without_grouped_queries_or_on_cpus_there_are_fast_kernels() -> None:
    model = {"name": "llama", "preset": "8b", "kvHeads": 32}
    assert found(gpus(precision="float32", model=model)).warnings == ()
    assert found(cpus(trainer={"model": {"name": "llama", "preset": "tiny"}})).warnings == ()


def test_a_volume_of_the_user_that_is_too_small_for_the_copies_is_warned_about() -> None:
    def warnings(size: str) -> tuple[str, ...]:
        pod = {
            "containers": [{"name": "worker", "volumeMounts": [{"name": "shared", "mountPath": "/dev/shm/"}]}],
            "volumes": [{"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": size}}],
        }
        workers = {"template": {"spec": pod}}
        return found(make_job(replicas=1, workers=workers, trainer=trainer_spec(), checkpoint=CHECKPOINT)).warnings

    (warning,) = warnings("1Mi")
    assert warning.startswith("spec.workers.template: the volume at /dev/shm has 1.00Mi, but asynchronous checkpoints")
    assert warnings("1Gi") == ()
    assert warnings("nonsense") == ()


def test_checkpoints_that_are_deleted_with_their_pod_are_warned_about() -> None:
    job = make_job(replicas=1, trainer=trainer_spec(), checkpoint={"volume": {"emptyDir": {}}})
    (warning,) = found(job).warnings
    assert warning.startswith(
        "spec.checkpoint.volume: an emptyDir is deleted with its pod, and the trained model with it"
    )


def test_a_plan_shows_host_memory_and_warnings() -> None:
    shown = Console(file=StringIO(), width=200)
    print_estimate(found(gpus("256Gi", precision="float32", checkpoint=CHECKPOINT)), shown)
    assert isinstance(shown.file, StringIO)
    text = shown.file.getvalue()
    assert "\nfit: a worker needs host memory: about 101Gi of 256Gi (" in text
    assert "\nwarning: spec.trainer.precision: in float32 PyTorch has no fast attention" in text
