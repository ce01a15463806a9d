"""From what the user wrote to what a worker runs: presets filled in, `auto` replaced by numbers."""

from typing import Any

from trainyard.config import MlpConfig, RunConfig, TransformerConfig
from trainyard.mesh import Mesh, make_mesh
from trainyard.resource.checkpoint import checkpoint_config
from trainyard.resource.datasets import Data
from trainyard.resource.health import health_config
from trainyard.resource.job import TrainingJob
from trainyard.resource.models import DEFAULT_PRESET, MOE_SIZES, Model, presets
from trainyard.resource.spec import GPU_RESOURCE
from trainyard.resource.training import TrainerSpec
from trainyard.sizing.fit import memory_problems

BYTE_VOCABULARY = 256
MICRO_BATCH_TOKENS = 16_384
DEFAULT_HIDDEN = (64, 64)
DEFAULT_BALANCE_LOSS = 0.01


def spec_problems(job: TrainingJob) -> list[str]:
    """Everything wrong with a spec that CEL could not tell at admission, and the memory that it would lack.

    Each entry names the field, the rule and the fix. An empty list means that the job can be run.
    """
    return _problems(job, memory=True)


def layout_problems(job: TrainingJob) -> list[str]:
    """The same without the memory: what makes it impossible even to say what the job would be."""
    return _problems(job, memory=False)


def largest_size(job: TrainingJob, most: int) -> int | None:
    """The most workers, no more than `most`, with which an elastic job can train; None if that is no number at all.

    Sizes between spec.elastic.minReplicas and workers.replicas count whose layout, batch and memory have no problem.
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
        problems = memory_problems(job.spec, _configure(job))
    return problems


def _layout_problems(job: TrainingJob) -> list[str]:
    try:
        _ = job.spec.world_size
    except ValueError:
        return [
            f"spec.workers.resources.limits[{GPU_RESOURCE}]: must be a whole number for procsPerWorker auto; "
            "correct it, or set procsPerWorker"
        ]
    trainer = job.spec.trainer
    if trainer is None:
        return []
    try:
        mesh = make_mesh(job.spec)
    except ValueError as error:
        return [str(error)]
    problems = _batch_problems(trainer, mesh)
    if trainer.model.name == "mlp":
        return problems
    model = transformer_config(trainer.model, trainer.data)
    preset = trainer.model.preset or DEFAULT_PRESET
    if model.dim % (2 * model.heads):
        problems.append(
            f"spec.trainer.model.dim: {model.dim} must be a multiple of 2 x heads = {2 * model.heads} "
            f"(preset {preset} with your overrides); change dim or heads"
        )
    if model.heads % model.kv_heads:
        problems.append(
            f"spec.trainer.model.heads: {model.heads} must be a multiple of kvHeads = {model.kv_heads} "
            f"(preset {preset} with your overrides); change heads or kvHeads"
        )
    return problems


def _batch_problems(trainer: TrainerSpec, mesh: Mesh) -> list[str]:
    """What keeps the global batch from being divided among the ranks, and the micro-batches of each."""
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


def transformer_config(model: Model, data: Data) -> TransformerConfig:
    """The preset's sizes under the user's overrides; the vocabulary follows from the tokenizer."""
    given = model.to_dict()
    preset = presets()[model.name][model.preset or DEFAULT_PRESET]
    sizes: dict[str, Any] = {k: given.get(k, v) for k, v in preset.items()}
    vocabulary = BYTE_VOCABULARY if data.tokenizer == "byte" else data.vocab_size
    mixture: dict[str, Any] | None = None
    if model.name == "moe":
        balance = DEFAULT_BALANCE_LOSS if model.balance_loss_weight is None else model.balance_loss_weight
        mixture = {size: sizes.pop(size) for size in MOE_SIZES} | {"balanceLossWeight": balance}
    return TransformerConfig.model_validate(
        {
            **sizes,
            "name": model.name,
            "vocabSize": vocabulary,
            "sequenceLength": data.sequence_length,
            "mixture": mixture,
        }
    )


def resolve(job: TrainingJob) -> RunConfig:
    """The complete configuration of a job that uses the built-in trainer.

    Raises:
        ValueError: the layout has problems (see `layout_problems`), or there is no trainer.
    """
    if job.spec.trainer is None:
        raise ValueError("spec.trainer: is absent, so there is nothing to resolve")
    if problems := layout_problems(job):
        raise ValueError("; ".join(problems))
    return _configure(job)


def _configure(job: TrainingJob) -> RunConfig:
    """The configuration of a job whose layout has no problem."""
    trainer = job.spec.trainer
    assert trainer is not None
    mesh = make_mesh(job.spec)
    return RunConfig(
        job=job.metadata.name,
        namespace=job.metadata.namespace,
        world_size=job.spec.world_size,
        servers=job.spec.servers,
        mesh=mesh,
        parallelism=job.spec.parallel,
        model=_model_config(trainer),
        micro_batch=_micro_batch(trainer, mesh),
        checkpoint=checkpoint_config(job.spec.checkpoint),
        health=health_config(job.spec.health),
        trainer=trainer,
    )


def _model_config(trainer: TrainerSpec) -> TransformerConfig | MlpConfig:
    if trainer.model.name == "mlp":
        return MlpConfig(hidden_sizes=trainer.model.hidden_sizes or DEFAULT_HIDDEN)
    return transformer_config(trainer.model, trainer.data)


def _micro_batch(trainer: TrainerSpec, mesh: Mesh) -> int:
    """Samples per forward pass. auto: the largest that fits, and in a pipeline one that keeps the bubble small.

    Of S stages and M micro-batches, (S - 1) / (M + S - 1) of the time is bubble (Huang et al., 2019): at most a
    fifth with M = 4 S.
    """
    if trainer.batch.micro != "auto":
        return trainer.batch.micro
    tokens = trainer.data.sequence_length if trainer.data.source == "text" else 1
    fits = max(1, MICRO_BATCH_TOKENS * mesh.context // tokens)
    if trainer.batch.global_ is None:
        return fits
    share = trainer.batch.global_ // mesh.data
    if mesh.pipeline > 1:
        fits = min(fits, max(1, share // (4 * mesh.pipeline)))
    return next(size for size in range(min(share, fits), 0, -1) if share % (mesh.pipeline * size) == 0)
