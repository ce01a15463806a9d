"""Resolve a TrainingJob into the configuration of its ranks: presets filled in, `auto` replaced by numbers."""

from collections.abc import Iterator

from trainyard.config import MemoryUse, Precision, RunConfig
from trainyard.mesh import Mesh, make_mesh
from trainyard.models import FAMILIES
from trainyard.models.family import DEFAULT_PRESET, DataShape, ModelConfig
from trainyard.resource.checkpoint import checkpoint_config
from trainyard.resource.datasets import vocabulary
from trainyard.resource.devices import counted_devices, device_claims
from trainyard.resource.health import health_config
from trainyard.resource.job import TrainingJob
from trainyard.resource.quantity import parse_bytes
from trainyard.resource.spec import TrainingJobSpec
from trainyard.resource.spec_rules import ASYNC_TENSOR_NEEDS, FLOAT8_NEEDS_GPUS, GPU_MEMORY_NEEDS_GPUS
from trainyard.resource.training import TrainerSpec
from trainyard.sizing.advice import memory_problems
from trainyard.sizing.fit import uses_gpus
from trainyard.sizing.memory_use import choose_memory_use

MICRO_BATCH_TOKENS = 16_384
"""Tokens of the largest micro-batch that is chosen automatically."""
SAMPLE_GRADIENT_SCALARS = 2**26
"""Scalars in the gradients of all samples of such a micro-batch, with spec.trainer.privacy: 256 MiB."""
DIGITS_FEATURES, DIGITS_CLASSES = 64, 10
"""Columns and classes of the builtin table `digits`."""


def spec_problems(job: TrainingJob) -> list[str]:
    """Return what is wrong with a spec that the CEL rules cannot see, insufficient memory included.

    Each entry names the field, the rule and the fix. The job can run if the list is empty.
    """
    return list(_gpu_problems(job.spec)) or _problems(job, memory=True)


def layout_problems(job: TrainingJob) -> list[str]:
    """Return what is wrong with a spec that the CEL rules cannot see, memory aside; such a job cannot be resolved."""
    return _problems(job, memory=False)


def largest_size(job: TrainingJob, most: int) -> int | None:
    """Return the largest number of workers, at most `most`, with which an elastic job can train; None if there is none.

    Every size from spec.elastic.minReplicas to workers.replicas is possible whose layout, batch and memory fit.
    """
    if job.spec.elastic is None:
        return None
    sizes = range(min(most, job.spec.workers.replicas), job.spec.elastic.min_replicas - 1, -1)
    return next((size for size in sizes if not _problems_at_size(job.with_replicas(size), memory=True)), None)


def _problems(job: TrainingJob, *, memory: bool) -> list[str]:
    problems = _problems_at_size(job, memory=memory)
    if problems or job.spec.elastic is None:
        return problems
    least = job.spec.elastic.min_replicas
    return [
        f"spec.elastic.minReplicas: with {least} workers the job is not possible: {problem}; or choose another "
        "minReplicas"
        for problem in _problems_at_size(job.with_replicas(least), memory=memory)
    ]


def _problems_at_size(job: TrainingJob, *, memory: bool) -> list[str]:
    problems = _layout_problems(job)
    if memory and not problems and job.spec.trainer is not None:
        config = _configure(job)
        problems = memory_problems(job.spec, config) if config.family.estimated and config.sizes_known else []
    return problems


def _layout_problems(job: TrainingJob) -> list[str]:
    try:
        _ = job.spec.world_size
    except ValueError:
        [kind, *_] = counted_devices(job.spec.workers.resources.limits or {})
        return [
            f"spec.workers.resources.limits[{kind}]: must be a whole number for procsPerWorker auto; "
            "correct it, or set procsPerWorker"
        ]
    if problems := [*_claim_problems(job.spec), *_shared_memory_problems(job.spec)]:
        return problems
    trainer = job.spec.trainer
    if trainer is None:
        return []
    try:
        mesh = make_mesh(job.spec)
    except ValueError as error:
        return [str(error)]
    problems = _batch_problems(trainer, mesh)
    # What the spec leaves out of a model with `from`, only the workers know, which check it.
    if trainer.model.from_ is not None and trainer.model.preset is None:
        return problems
    model = _model_config(trainer)
    return problems + FAMILIES[model.name].problems(model, trainer.model.preset or DEFAULT_PRESET)


def _claim_problems(spec: TrainingJobSpec) -> Iterator[str]:
    """Yield what is wrong with the resource claims of the template, which CEL does not see."""
    workers, limits = spec.workers, spec.workers.resources.limits or {}
    claims = device_claims(workers.template.spec)
    if claims and workers.procs_per_worker == "auto" and not counted_devices(limits):
        yield (
            f"spec.workers.procsPerWorker: auto does not know how many devices the resource claim {claims[0]} of the "
            "template has; set it to the number of processes in each worker"
        )


def _gpu_problems(spec: TrainingJobSpec) -> Iterator[str]:
    """Yield which fields need GPUs that the workers do not have; CEL lets them pass where claims may have some."""
    if uses_gpus(spec):
        return
    if spec.workers.gpu_memory is not None:
        yield GPU_MEMORY_NEEDS_GPUS
    if spec.parallel.async_tensor:
        yield ASYNC_TENSOR_NEEDS
    if spec.trainer is not None and spec.trainer.float8:
        yield FLOAT8_NEEDS_GPUS


def _shared_memory_problems(spec: TrainingJobSpec) -> Iterator[str]:
    size, limit = spec.workers.shared_memory, (spec.workers.resources.limits or {}).get("memory")
    if size is None or limit is None:
        return
    try:
        fits = parse_bytes(size) <= parse_bytes(limit)
    except ValueError as error:
        yield f"spec.workers: sharedMemory and resources.limits.memory: {error}"
        return
    if not fits:
        yield (
            f"spec.workers.sharedMemory: {size} is more than the memory limit {limit}, to which it counts; lower it, "
            "or raise spec.workers.resources.limits.memory"
        )


def _batch_problems(trainer: TrainerSpec, mesh: Mesh) -> list[str]:
    """Return why the global batch cannot be divided into equal micro-batches of all data-parallel ranks."""
    batch, micro = trainer.batch.global_, trainer.batch.micro
    if batch is None:
        return []
    if batch % mesh.data:
        return [
            f"spec.trainer.batch.global: {batch} must be a multiple of the {mesh.data} data-parallel ranks "
            "(workers.replicas x workers.procsPerWorker / (tensor x context x pipeline.stages)); change the batch or "
            "the number of workers"
        ]
    size = 1 if micro == "auto" else micro
    if batch // mesh.data % (mesh.pipeline * size):
        stages = f"{mesh.pipeline} stages x " if mesh.pipeline > 1 else ""
        return [
            f"spec.trainer.batch.micro: the share of one rank, {batch // mesh.data} samples, must be a multiple of "
            f"{stages}{size}; change the batch, or the number of workers"
        ]
    return []


def resolve(job: TrainingJob) -> RunConfig:
    """Return the complete configuration of a job that uses the built-in trainer.

    Raises:
        ValueError: the layout has problems (see `layout_problems`), or there is no trainer.
    """
    if job.spec.trainer is None:
        raise ValueError("spec.trainer: is absent, so that there is nothing to resolve; add it")
    if problems := layout_problems(job):
        raise ValueError("; ".join(problems))
    return _configure(job)


def _configure(job: TrainingJob) -> RunConfig:
    """Return the configuration of a job whose layout has no problem."""
    trainer = job.spec.trainer
    assert trainer is not None
    mesh = make_mesh(job.spec)
    micro_batch = _micro_batch(trainer, mesh)
    if trainer.task == "evaluate" and trainer.batch.global_ is None:
        # An evaluation has no steps whose size would matter: each rank takes one micro-batch for each pipeline stage.
        batch = trainer.batch.replace(global_=micro_batch * mesh.data * mesh.pipeline)
        trainer = trainer.replace(batch=batch)
    config = RunConfig(
        job=job.metadata.name,
        namespace=job.metadata.namespace,
        world_size=job.spec.world_size,
        servers=job.spec.servers,
        mesh=mesh,
        parallelism=job.spec.parallel,
        model=_model_config(trainer),
        micro_batch=micro_batch,
        checkpoint=checkpoint_config(job.spec.checkpoint),
        health=health_config(job.spec.health),
        trainer=trainer.replace(precision=_precision(job.spec, trainer)),
    )
    # Without an estimate the ranks keep no memory that they could return.
    use = choose_memory_use(job.spec, config) if config.sizes_known else MemoryUse(keep_freed=False)
    return config.replace(memory_use=use)


def _precision(spec: TrainingJobSpec, trainer: TrainerSpec) -> Precision:
    """Return the data type of matrix products. auto: bfloat16 on GPUs, where it is several times faster than float32.

    Attention in float32 has no fast kernel on a GPU either: it would hold all T x T scores of a head at once.
    """
    if trainer.precision != "auto":
        return trainer.precision
    # Gradients of single samples are computed in float32.
    if trainer.privacy is not None:
        return "float32"
    return "bfloat16" if uses_gpus(spec) else "float32"


def _model_config(trainer: TrainerSpec) -> ModelConfig:
    """Return the sizes of the model: the user's, else those of the preset, the data or the family."""
    data, digits = trainer.data, trainer.data.builtin == "digits"
    shape = DataShape(
        vocabulary=vocabulary(data),
        sequence_length=data.sequence_length,
        features=DIGITS_FEATURES if digits else None,
        classes=DIGITS_CLASSES if digits else None,
    )
    model: ModelConfig = FAMILIES[trainer.model.name].resolve(trainer.model.to_dict(), shape)
    return model


def _micro_batch(trainer: TrainerSpec, mesh: Mesh) -> int:
    """Return the samples per forward pass. auto: as many as fit; in a pipeline, few enough to keep the bubble small.

    Of S stages and M micro-batches, (S - 1) / (M + S - 1) of the time is bubble (Huang et al., 2019): at most a
    fifth with M = 4 S.
    """
    if trainer.batch.micro != "auto":
        return trainer.batch.micro
    tokens = 1 if trainer.data.source == "table" else trainer.data.sequence_length
    fits = max(1, MICRO_BATCH_TOKENS * mesh.context // tokens)
    if trainer.privacy is not None:
        parameters = FAMILIES[trainer.model.name].parameters(_model_config(trainer))
        fits = min(fits, max(1, SAMPLE_GRADIENT_SCALARS // max(1, parameters)))
    if trainer.batch.global_ is None:
        return fits
    share = trainer.batch.global_ // mesh.data
    if mesh.pipeline > 1:
        fits = min(fits, max(1, share // (4 * mesh.pipeline)))
    return next(size for size in range(min(share, fits), 0, -1) if share % (mesh.pipeline * size) == 0)
