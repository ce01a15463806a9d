"""`spec.trainer`: configuration of the built-in trainer."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, NonNegative, Positive, Rule, Tokens
from trainyard.models import FAMILIES
from trainyard.models.family import CUSTOM, Feature
from trainyard.optimizers import OPTIMIZERS
from trainyard.resource.datasets import HOLDS_OUT, Data
from trainyard.resource.export import Export
from trainyard.resource.insight import EVALUATES, EXPLAIN_RULES, Explain, Task
from trainyard.resource.models import Model, families_with, reasons_against
from trainyard.resource.optimization import Optimizer, Schedule
from trainyard.resource.privacy import PRIVACY_RULES, Privacy
from trainyard.text import listed

_BY_SOURCE = {name: family.data_source for name, family in FAMILIES.items()}
_FOR_TABLES, _FOR_TOKENS = ([name for name in FAMILIES if _BY_SOURCE[name] == source] for source in ("table", "text"))
_FULL_BATCH = [name for name, info in OPTIMIZERS.items() if info.full_batch]
_FULL_BATCH_NAMES = ", ".join(_FULL_BATCH)


def _only_for(feature: Feature, unused: str) -> Rule:
    """Return the rule that an option of spec.trainer, named as the feature, is for the families that support it."""
    names = families_with(feature)
    return Rule(
        f"self.model.name in {names} || {unused}",
        f"spec.trainer.{feature}: is for {listed(names)} only{reasons_against(feature)}; remove it, or set "
        f"spec.trainer.model.name: {listed(names, 'or')}",
    )


class Batch(ApiModel):
    """Number of samples in one optimizer step; it does not depend on the number of workers."""

    global_: Annotated[Positive | None, Field(alias="global")] = None
    """Samples per optimizer step over all ranks: a multiple of the number of data-parallel ranks. Required, except with
    the optimizer gd, whose steps are over all samples."""
    micro: Positive | Literal["auto"] = "auto"
    """Samples per forward pass of one rank. Gradients are accumulated until the rank's share of the global batch is
    complete. auto: the largest divisor of that share with at most 16,384 tokens."""


class Converged(ApiModel):
    """Early stopping: the evaluation loss has not fallen by minDelta for `patience` consecutive evaluations."""

    patience: Positive = 3
    """Number of consecutive evaluations without improvement after which the training stops."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Decrease of the evaluation loss below the lowest so far that counts as an improvement."""


class Stop(ApiModel):
    """When the training ends: after a number of steps, epochs or tokens (exactly one of the three), or earlier if the
    evaluation loss is low enough or no longer improves.
    """

    steps: Positive | None = None
    """Total number of optimizer steps."""
    epochs: Positive | None = None
    """Number of passes over the training data. Samples of earlier attempts count, whatever their batch was."""
    tokens: Tokens | None = None
    """Number of tokens over all ranks (of a table: rows), rounded up to a multiple of one step. Tokens of earlier
    attempts count, whatever their batch was, also those of skipped steps and of steps before a rollback."""
    target_loss: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Stop after the first evaluation with a loss of at most this value."""
    converged: Converged | None = None
    """Stop when the evaluation loss no longer improves."""


class Evaluation(ApiModel):
    """Evaluation on the samples that data.evalFraction or data.evalPath keeps from the training, always after the last
    step. Tokens: loss, perplexity and accuracy, and with several sources the loss of each as loss_NAME. Tables: loss,
    accuracy, and the means of precision, recall and F1 over the classes.
    """

    every_steps: Positive | None = None
    """Number of steps between two evaluations. Default: evaluate after the last step only."""
    max_samples: Positive | None = None
    """Most samples of an evaluation; default: all held-out samples. They are selected from all over each source, in
    proportion to its held-out samples and at least one, by their number alone: each evaluation uses the same, also the
    one after the last step, on every layout and with every seed. A job with task: evaluate uses no more either; remove
    this line to have it evaluate everything."""
    report: bool = False
    """Whether the last evaluation writes a report (evaluation.html and evaluation.json: metrics of each class and
    source, confusion matrix, calibration) to the folder `reports` beside the checkpoints. A job with task: evaluate
    always does."""


class Profile(ApiModel):
    """Trace of a range of steps, recorded by torch.profiler."""

    start_step: Positive
    """First step of the trace, counted from 1."""
    steps: Annotated[int, Field(ge=1, le=100)] = 3
    """Number of steps in the trace. The trace of a large model takes tens of MB per step."""
    ranks: Annotated[tuple[NonNegative, ...], Field(min_length=1, max_length=64)] = (0,)
    """Ranks that record a trace."""


class TrainerSpec(ApiModel):
    """Configuration of the built-in trainer."""

    task: Task = "train"
    """What the job does. train: it trains the model. evaluate: it computes the metrics of the model in the newest
    checkpoint, or without one of model.from, on any layout, writes a report, and ends. Nothing is trained, saved or
    exported, so that fields about the training are not used: the manifest of a training job plus this line evaluates
    what it has trained. Evaluated are the held-out samples of data, or all samples if none are held out. Defaults to
    train."""
    model: Model
    """Model to train."""
    data: Data
    """Training data."""
    module: (
        Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")] | None
    ) = None
    """Function of a Python module in the worker, as package.module:function. It returns a plug-in: a model
    (model.name: custom), a data set (data.source: custom), a loss or metrics, which are used with the trainer's loop,
    layouts and checkpoints. The module is in the image, or in a mounted folder that PYTHONPATH names (spec.env)."""
    options: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] | None = None
    """Settings for the function of module, which finds them in its configuration. Values are texts; quote numbers."""
    batch: Batch = Batch()
    """Batch sizes."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and its parameters."""
    schedule: Schedule = Schedule()
    """Learning rate schedule."""
    stop: Stop = Stop()
    """When the training ends. Required, except with task: evaluate."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out samples."""
    explain: Explain | None = None
    """Explain some predictions at the end of the job, in a report (explanation.html and explanation.json) in the folder
    `reports` beside the checkpoints. The rank that explains a sample needs the entire model."""
    privacy: Privacy | None = None
    """llama, mlp: differentially private training, with a budget."""
    export: Export | None = None
    """Weights for other programs, written when the training is complete."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """llama, moe: activations that the backward pass recomputes instead of keeping them in memory (Chen et al., 2016).
    none: nothing is recomputed.
    selective: everything inside a block except the results of attention and matrix products, which cost the most.
    full: each block from its input; about a third more computation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of matrix products and activations. Parameters, their gradients and the optimizer state are always
    float32. auto: bfloat16 if the workers ask for GPUs (workers.resources), else float32."""
    float8: bool = False
    """llama: whether matrix products inside the blocks are computed in float8, with a scale for each row (Micikevicius
    et al., 2022). Faster than bfloat16 for large matrices, on GPUs from H100 on. Needs precision bfloat16 and compile.
    """
    compile: bool = False
    """llama: whether each block is compiled with torch.compile. The first step takes about a minute longer, all others
    are faster. Needs a C++ compiler in the worker, which the trainer image has."""
    seed: NonNegative = 0
    """Random seed of the initial weights and of the order of the samples."""
    signing_key_file: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Path of a private key inside the worker container: a PEM file without a passphrase, best from a Secret that
    workers.template mounts. It signs the record of each checkpoint, which `trainyard verify` checks. Without it records
    are not signed."""
    tensorboard: bool = False
    """Whether the metrics of each report and evaluation are written for TensorBoard, to the folder `tensorboard` of the
    checkpoint volume."""
    profile: Profile | None = None
    """Write a trace of some steps (for Perfetto or chrome://tracing) to the folder `profiles` of the checkpoint volume.
    `trainyard profile` requests a trace from a running job."""
    log_every_steps: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Number of steps between two reports of loss and throughput. A larger value costs less time, since the loss is
    copied from the device for reports only."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"has(self.module) || (self.model.name != {CUSTOM!r} && !(has(self.data.source) && self.data.source =="
            f" {CUSTOM!r}))",
            f"spec.trainer.module: is required with model.name: {CUSTOM} and data.source: {CUSTOM}, which it brings; "
            "add it, or choose another model or source",
        ),
        Rule(
            "has(self.module) || !has(self.options)",
            "spec.trainer.options: are for spec.trainer.module; add it, or remove them",
        ),
        Rule(
            f"(has(self.data.source) && self.data.source == 'table') == (self.model.name in {_FOR_TABLES})",
            f"spec.trainer.data.source: table is for {listed(_FOR_TABLES)}, all others are for "
            f"{listed(_FOR_TOKENS)}; change spec.trainer.model.name or the data",
        ),
        Rule(
            f"self.model.name in {families_with('isolatedDocuments')} || self.data.documents != 'isolated'",
            f"spec.trainer.data.documents: isolated is for {listed(families_with('isolatedDocuments'))} only, "
            "which have attention; remove it",
        ),
        _only_for("activationCheckpointing", "self.activationCheckpointing == 'none'"),
        _only_for("compile", "!self.compile"),
        _only_for("explain", "!has(self.explain)"),
        *EXPLAIN_RULES,
        _only_for("privacy", "!has(self.privacy)"),
        *PRIVACY_RULES,
        Rule(
            "!self.float8 || (self.compile && self.precision != 'float32')",
            "spec.trainer.float8: needs precision bfloat16, which everything but matrix products is computed in, and "
            "compile, without which the scaling takes longer than float8 saves; set both, or remove float8",
        ),
        Rule(
            f"self.model.name in {families_with('fullBatch')} || !(self.optimizer.name in {_FULL_BATCH})",
            f"spec.trainer.optimizer.name: {_FULL_BATCH_NAMES} is for {listed(families_with('fullBatch'))} only"
            f"{reasons_against('fullBatch')}; choose another optimizer",
        ),
        Rule(
            f"{EVALUATES} || [has(self.stop.steps), has(self.stop.epochs),"
            " has(self.stop.tokens)].filter(given, given).size() == 1",
            "spec.trainer.stop: exactly one of steps, epochs and tokens must be given; keep the one you mean",
        ),
        Rule(
            f"{EVALUATES} || has(self.batch.global) != (self.optimizer.name in {_FULL_BATCH})",
            f"spec.trainer.batch.global: every optimizer needs it except {_FULL_BATCH_NAMES}, whose steps are over "
            f"all samples; add it, or with {_FULL_BATCH_NAMES} remove it",
        ),
        Rule(
            "!(has(self.stop.targetLoss) || has(self.stop.converged)) || has(self.evaluation.everySteps)",
            "spec.trainer.stop: targetLoss and converged are checked at evaluations; set "
            "spec.trainer.evaluation.everySteps and spec.trainer.data.evalFraction",
        ),
        Rule(
            "!(has(self.evaluation.everySteps) || has(self.evaluation.maxSamples) || self.evaluation.report) ||"
            f" {EVALUATES} ||"
            f" {HOLDS_OUT.format(data='self.data')}",
            "spec.trainer.evaluation: needs samples to evaluate on; set spec.trainer.data.evalFraction, for example to "
            "0.1",
        ),
        Rule(
            "!has(self.evaluation.maxSamples) || !has(self.data.sources) || self.evaluation.maxSamples >="
            " self.data.sources.filter(source, source.evalFraction > 0.0 || has(source.evalPath)).size()",
            "spec.trainer.evaluation.maxSamples: must be at least the number of spec.trainer.data.sources with "
            "held-out samples, since one of each is evaluated; raise it",
        ),
        Rule(
            "!has(self.stop.steps) || self.schedule.warmupSteps + (has(self.schedule.decaySteps) ?"
            " self.schedule.decaySteps : 0) <= self.stop.steps",
            "spec.trainer.schedule: warmupSteps and decaySteps must not exceed spec.trainer.stop.steps; shorten them, "
            "or train longer",
        ),
        Rule(
            "!has(self.stop.steps) || !(has(self.schedule.warmupTokens) || has(self.schedule.decayTokens))",
            "spec.trainer.schedule: warmupTokens and decayTokens are for runs that end by tokens or epochs; use "
            "warmupSteps and decaySteps, or spec.trainer.stop.tokens",
        ),
        Rule(
            "!has(self.stop.tokens) || (has(self.schedule.warmupTokens) ? self.schedule.warmupTokens : 0) +"
            " (has(self.schedule.decayTokens) ? self.schedule.decayTokens : 0) <= self.stop.tokens",
            "spec.trainer.schedule: warmupTokens and decayTokens must not exceed spec.trainer.stop.tokens; shorten "
            "them, or train longer",
        ),
    )
