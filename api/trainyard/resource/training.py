"""`spec.trainer`: what the built-in trainer trains, on which data, how, and for how long."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, NonNegative, Positive, Rule
from trainyard.resource.datasets import Data
from trainyard.resource.models import Model
from trainyard.resource.optimization import Optimizer, Schedule


class Batch(ApiModel):
    """How many samples make one step, whatever the number of workers."""

    global_: Annotated[Positive | None, Field(alias="global")] = None
    """Samples per optimizer step, over all ranks; a multiple of the number of data-parallel ranks. The optimizer gd
    alone takes none: its steps are over all samples."""
    micro: Positive | Literal["auto"] = "auto"
    """Samples per forward pass of one rank; gradients accumulate until the rank's share of the global batch
    is done. auto: the largest share of at most 16,384 tokens."""


class Converged(ApiModel):
    """No progress any more: the evaluation loss has not fallen by minDelta for some evaluations in a row."""

    patience: Positive = 3
    """Evaluations in a row without improvement."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Fall of the evaluation loss, below the lowest so far, that counts as improvement."""


class Stop(ApiModel):
    """When the training is done: after a number of steps, or of epochs, or of tokens, or earlier if it is good enough
    or gets no better.
    """

    steps: Positive | None = None
    """Optimizer steps in all."""
    epochs: Positive | None = None
    """Times that the training data is gone through."""
    tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Tokens over all ranks (samples, where they have no tokens), rounded up to whole steps."""
    target_loss: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Stop at the first evaluation whose loss is this or lower."""
    converged: Converged | None = None
    """Stop when the evaluation loss falls no more."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.steps), has(self.epochs), has(self.tokens)].filter(given, given).size() == 1",
            "spec.trainer.stop: exactly one of steps, epochs and tokens must be given; keep the one you mean",
        ),
    )


class Evaluation(ApiModel):
    """Evaluation on held-out samples: of text loss, perplexity and accuracy; of classes also precision, recall and F1,
    each the mean over the classes. It always happens after the last step.
    """

    every_steps: Positive | None = None
    """Steps between two evaluations during the training; none if absent."""


class Profile(ApiModel):
    """A trace of some steps, by torch's profiler."""

    start_step: Positive
    """The first of them, from 1."""
    steps: Annotated[int, Field(ge=1, le=100)] = 3
    """How many; a trace of a large model takes some ten MB for each."""
    ranks: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=64)] = (0,)
    """Ranks that are traced."""


class TrainerSpec(ApiModel):
    """The built-in trainer."""

    model: Model
    """The model."""
    data: Data
    """The data."""
    batch: Batch = Batch()
    """Batch size."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    schedule: Schedule = Schedule()
    """The learning rate over time."""
    stop: Stop
    """When to stop."""
    evaluation: Evaluation = Evaluation()
    """How well the model does on the samples that data.evalFraction keeps from the training."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """llama, moe: what the backward pass computes again instead of keeping it in memory (Chen et al., 2016). full: each
    block, a third more computation; selective: all but attention and matrix products, which cost the most."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products and activations. Parameters, their gradients and the optimizer's state stay float32."""
    compile: bool = False
    """llama: compile each block with torch.compile. The first step takes longer by a minute or so, the others less. It
    needs a C++ compiler, which the trainer image has."""
    seed: NonNegative = 0
    """Seed of the initial weights and of the order of the samples."""
    tensorboard: bool = False
    """Write the figures of each report and evaluation for TensorBoard, to the folder tensorboard beside the
    checkpoints."""
    profile: Profile | None = None
    """Write a trace of some steps (for Perfetto or chrome://tracing) to the folder profiles beside the checkpoints.
    `trainyard profile` asks a running job for one."""
    log_every_steps: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Steps between two reports of loss and throughput. Between reports the trainer never waits for the
    device, so a larger number costs less."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.model.name == 'mlp') == (self.data.source == 'table')",
            "spec.trainer.data.source: llama and moe learn from text, mlp from a table; change "
            "spec.trainer.model.name or the data",
        ),
        Rule(
            "self.model.name != 'mlp' || self.activationCheckpointing == 'none'",
            "spec.trainer.activationCheckpointing: is for llama and moe only, an mlp has no blocks; remove it",
        ),
        Rule(
            "self.model.name == 'llama' || !self.compile",
            "spec.trainer.compile: is for llama only (an mlp has no blocks, and the way of a token through a moe is not "
            "known before); remove it",
        ),
        Rule(
            "self.model.name != 'moe' || self.optimizer.name != 'gd'",
            "spec.trainer.optimizer.name: gd is for llama and mlp, since the load of experts is balanced over batches; "
            "choose another optimizer",
        ),
        Rule(
            "has(self.batch.global) != (self.optimizer.name == 'gd')",
            "spec.trainer.batch.global: every optimizer needs it but gd, whose steps are over all samples; add it, or "
            "with gd remove it",
        ),
        Rule(
            "!(has(self.stop.targetLoss) || has(self.stop.converged)) || has(self.evaluation.everySteps)",
            "spec.trainer.stop: targetLoss and converged are judged at evaluations; set "
            "spec.trainer.evaluation.everySteps and spec.trainer.data.evalFraction",
        ),
        Rule(
            "!has(self.evaluation.everySteps) || self.data.evalFraction > 0.0",
            "spec.trainer.evaluation: needs samples to evaluate on; set spec.trainer.data.evalFraction, for example to 0.1",
        ),
        Rule(
            "!has(self.stop.steps) || self.schedule.warmupSteps + (has(self.schedule.decaySteps) ?"
            " self.schedule.decaySteps : 0) <= self.stop.steps",
            "spec.trainer.schedule: warmupSteps and decaySteps must not exceed spec.trainer.stop.steps; shorten them, "
            "or train longer",
        ),
    )
