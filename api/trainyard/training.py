"""`spec.trainer`: what the built-in trainer trains, on which data, how, and for how long."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import POSITIVE_INT32, ApiModel, Rule

Positive = Annotated[int, Field(ge=1, le=POSITIVE_INT32)]
NonNegative = Annotated[int, Field(ge=0, le=POSITIVE_INT32)]


class GptModel(ApiModel):
    """A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    name: Literal["gpt"]
    """Kind of model."""
    preset: Literal["nano", "tiny", "small", "medium", "1b", "8b"] = "tiny"
    """Sizes to start from; any of the fields below overrides one of them."""
    dim: Positive | None = None
    """Width of the residual stream."""
    layers: Positive | None = None
    """Number of transformer blocks."""
    heads: Positive | None = None
    """Query heads of each attention."""
    kv_heads: Positive | None = None
    """Key and value heads, each shared by heads / kvHeads query heads (grouped-query attention)."""
    ffn_dim: Positive | None = None
    """Hidden width of the feed-forward network."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.dim) || !has(self.heads) || self.dim % (2 * self.heads) == 0",
            "spec.trainer.model.dim: must be a multiple of 2 x heads (rotary positions need heads of even "
            "width); change dim or heads",
        ),
        Rule(
            "!has(self.heads) || !has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "spec.trainer.model.heads: must be a multiple of kvHeads; change heads or kvHeads",
        ),
    )


class TextData(ApiModel):
    """Text, tokenized once per worker and read in windows of sequenceLength tokens."""

    source: Literal["text"]
    """Kind of data."""
    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """A UTF-8 file, or a folder whose files are read in sorted order, as seen inside the worker. Mount it
    through workers.template."""
    builtin: Literal["python-stdlib"] | None = None
    """Text that every worker image already holds: python-stdlib is the source of Python's standard library
    (about 12 MB)."""
    tokenizer: Literal["byte", "bpe"] = "byte"
    """byte: 256 entries, nothing to learn. bpe: byte-pair encoding, trained on the data at start-up."""
    vocab_size: Annotated[int, Field(ge=512, le=65_536)] = 4096
    """Entries of the bpe tokenizer (a byte tokenizer always has 256)."""
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 256
    """Tokens of one sample."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.path) != has(self.builtin)",
            "spec.trainer.data: exactly one of path and builtin must be given; remove one, or add one "
            "(builtin: python-stdlib needs no files)",
        ),
    )


class Batch(ApiModel):
    """How many samples make one step, whatever the number of workers."""

    global_: Annotated[Positive, Field(alias="global")]
    """Samples per optimizer step, over all ranks. It must be a multiple of the world size
    (workers.replicas x workers.procsPerWorker)."""
    micro: Positive | Literal["auto"] = "auto"
    """Samples per forward pass of one rank; gradients accumulate until the rank's share of the global batch
    is done. auto: the largest share of at most 16,384 tokens."""


class AdamW(ApiModel):
    """AdamW (Loshchilov and Hutter, 2019), with weight decay on matrices only."""

    name: Literal["adamw"] = "adamw"
    """Algorithm."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    """Peak learning rate; the schedule scales it."""
    betas: Annotated[tuple[float, ...], Field(min_length=2, max_length=2)] = (0.9, 0.95)
    """Decay of the first and of the second moment, each in [0, 1)."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay of the parameters with two or more dimensions."""
    gradient_clip: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.betas.all(b, b >= 0.0 && b < 1.0)",
            "spec.trainer.optimizer.betas: each must lie in [0, 1); the usual ones are [0.9, 0.95]",
        ),
    )


class CosineSchedule(ApiModel):
    """Linear warm-up, then half a cosine down to a share of the peak (Loshchilov and Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up from 0 to the peak."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last step, as a share of the peak."""


class Stop(ApiModel):
    """When the training is done."""

    steps: Positive
    """Optimizer steps in all."""


class TrainerSpec(ApiModel):
    """The built-in trainer."""

    model: GptModel
    """The model."""
    data: TextData
    """The data."""
    batch: Batch
    """Batch size."""
    optimizer: AdamW = AdamW()
    """The optimizer."""
    schedule: CosineSchedule = CosineSchedule()
    """The learning rate over time."""
    stop: Stop
    """When to stop."""
    seed: NonNegative = 0
    """Seed of the initial weights and of the order of the samples."""
    log_every_steps: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Steps between two reports of loss and throughput. Between reports the trainer never waits for the
    device, so a larger number costs less."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.schedule.warmupSteps <= self.stop.steps",
            "spec.trainer.schedule.warmupSteps: must not exceed spec.trainer.stop.steps; shorten the warm-up "
            "or train longer",
        ),
    )
