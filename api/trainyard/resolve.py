"""From what the user wrote to what a worker runs: presets filled in, `auto` replaced by numbers."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from trainyard.base import ApiModel
from trainyard.job import TrainingJob
from trainyard.spec import GPU_RESOURCE
from trainyard.training import GptModel, TextData, TrainerSpec

BYTE_VOCABULARY = 256
MICRO_BATCH_TOKENS = 16_384


class GptConfig(ApiModel):
    """Sizes of a GPT, complete."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int
    sequence_length: int


class RunConfig(ApiModel):
    """What every worker of a job reads at start-up (the ConfigMap's config.json)."""

    job: str
    namespace: str
    world_size: int
    model: GptConfig
    micro_batch: int
    """Samples per forward pass of one rank."""
    trainer: TrainerSpec
    """The rest, as the user wrote it."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank per optimizer step."""
        return self.trainer.batch.global_ // (self.world_size * self.micro_batch)


@cache
def presets() -> dict[str, dict[str, dict[str, int]]]:
    """The model presets, by model and preset name, in the CRD's field names."""
    text = files("trainyard").joinpath("presets.json").read_text("utf-8")
    table: dict[str, dict[str, dict[str, int]]] = json.loads(text)
    return table


def spec_problems(job: TrainingJob) -> list[str]:
    """Everything wrong with a spec that CEL could not tell at admission.

    Each entry names the field, the rule and the fix. An empty list means that the job can be run.
    """
    try:
        world = job.spec.world_size
    except ValueError:
        return [
            f"spec.workers.resources.limits[{GPU_RESOURCE}]: must be a whole number for procsPerWorker auto; "
            "correct it, or set procsPerWorker"
        ]
    trainer = job.spec.trainer
    if trainer is None:
        return []
    model = gpt_config(trainer.model, trainer.data)
    problems = []
    if trainer.batch.global_ % world:
        problems.append(
            f"spec.trainer.batch.global: {trainer.batch.global_} must be a multiple of the world size {world} "
            "(workers.replicas x workers.procsPerWorker); change the batch or the number of workers"
        )
    if model.dim % (2 * model.heads):
        problems.append(
            f"spec.trainer.model.dim: {model.dim} must be a multiple of 2 x heads = {2 * model.heads} "
            f"(preset {trainer.model.preset} with your overrides); change dim or heads"
        )
    if model.heads % model.kv_heads:
        problems.append(
            f"spec.trainer.model.heads: {model.heads} must be a multiple of kvHeads = {model.kv_heads} "
            f"(preset {trainer.model.preset} with your overrides); change heads or kvHeads"
        )
    return problems


def gpt_config(model: GptModel, data: TextData) -> GptConfig:
    """The preset's sizes under the user's overrides; the vocabulary follows from the tokenizer."""
    given = model.to_dict()
    sizes: dict[str, Any] = {k: given.get(k, v) for k, v in presets()[model.name][model.preset].items()}
    vocabulary = BYTE_VOCABULARY if data.tokenizer == "byte" else data.vocab_size
    return GptConfig(**sizes, vocab_size=vocabulary, sequence_length=data.sequence_length)


def resolve(job: TrainingJob) -> RunConfig:
    """The complete configuration of a job that uses the built-in trainer.

    Raises:
        ValueError: the spec has problems (see `spec_problems`), or has no trainer.
    """
    trainer = job.spec.trainer
    if trainer is None:
        raise ValueError("spec.trainer: is absent, so there is nothing to resolve")
    if problems := spec_problems(job):
        raise ValueError("; ".join(problems))
    return RunConfig(
        job=job.metadata.name,
        namespace=job.metadata.namespace,
        world_size=job.spec.world_size,
        model=gpt_config(trainer.model, trainer.data),
        micro_batch=_micro_batch(trainer, job.spec.world_size),
        trainer=trainer,
    )


def _micro_batch(trainer: TrainerSpec, world_size: int) -> int:
    if trainer.batch.micro != "auto":
        return trainer.batch.micro
    share = trainer.batch.global_ // world_size
    fits = max(1, MICRO_BATCH_TOKENS // trainer.data.sequence_length)
    return next(size for size in range(min(share, fits), 0, -1) if share % size == 0)
