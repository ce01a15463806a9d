"""`spec.trainer.privacy`: differentially private training, and the rules about what it can be combined with."""

from typing import Annotated

from pydantic import Field

from trainyard.base import ApiModel, Rule
from trainyard.resource.cel import EXPERT, MODEL_PARALLEL

_FIELD = "spec.trainer.privacy"


class Privacy(ApiModel):
    """Differentially private training (DP-SGD; Abadi et al., 2016). The parameters that result are almost as probable
    without any one training sample as with it: (epsilon, delta)-differential privacy for one row of a table, or one
    window of sequenceLength tokens. Each sample takes part in a step with probability batch.global / number of samples,
    independently of all others; its gradient is scaled down to maxGradNorm, and Gaussian noise is added to the sum.
    """

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    """The budget: training ends before the step with which it would be exceeded. Small values protect better; from 1 to
    10 are usual."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability with which the bound of epsilon may be exceeded; must be below 1 / number of training samples."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Largest norm of the gradient of one sample's mean loss; larger ones are scaled down to it."""
    noise_multiplier: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Standard deviation of the noise, divided by maxGradNorm. Defaults to the smallest value with which the budget
    lasts until spec.trainer.stop."""


def _unless_private(allowed: str, message: str) -> Rule:
    return Rule(f"!has(self.privacy) || ({allowed})", message)


PRIVACY_RULES: tuple[Rule, ...] = (
    _unless_private(
        "has(self.batch.global)",
        f"{_FIELD}: needs spec.trainer.batch.global, the expected size of a batch whose samples are drawn at random; "
        "set it, and choose an optimizer other than gd",
    ),
    _unless_private(
        "self.precision != 'bfloat16'",
        f"{_FIELD}: gradients of single samples are computed in float32; set spec.trainer.precision: float32, or "
        "remove it",
    ),
    _unless_private(
        "!self.compile && self.activationCheckpointing == 'none'",
        f"{_FIELD}: gradients of single samples are computed by hooks of the layers, which compiled and recomputed "
        "blocks do not run once; remove spec.trainer.compile and activationCheckpointing",
    ),
    _unless_private(
        "!has(self.module)",
        f"{_FIELD}: a loss, a model or data of your own may mix samples, and then a bound on each sample's gradient "
        "protects none of them; remove spec.trainer.module",
    ),
    _unless_private(
        "!has(self.data.sources)",
        f"{_FIELD}: each sample must have the same probability, but those of several sources follow from their "
        "weights; put the data into one source (spec.trainer.data.source and path)",
    ),
    _unless_private(
        "!has(self.data.source) || self.data.source != 'chat'",
        f"{_FIELD}: conversations have different numbers of targets, by whose sum over a batch the loss is divided; "
        "set spec.trainer.data.source: text",
    ),
    _unless_private(
        "self.data.tokenizer != 'bpe'",
        f"{_FIELD}: a bpe tokenizer is learned from the data without protection, and shows frequent words of them; set "
        "spec.trainer.data.tokenizer to byte, or to file with a tokenizer of other data",
    ),
)
"""Rules whose `self` is spec.trainer."""

_PRIVATE = "has(self.trainer) && has(self.trainer.privacy)"

PRIVACY_LAYOUT_RULES: tuple[Rule, ...] = (
    Rule(
        f"!({_PRIVATE}) || {MODEL_PARALLEL} * {EXPERT} == 1 &&"
        " (!has(self.parallelism) || self.parallelism.data.mode == 'ddp')",
        f"{_FIELD}: needs all parameters on each rank, since the norm of one sample's gradient is over all of them; "
        "set spec.parallelism.data.mode: ddp, and remove tensor, context, expert and pipeline",
    ),
    Rule(
        f"!({_PRIVATE}) || has(self.checkpoint)",
        f"{_FIELD}: needs spec.checkpoint, where the spent budget is recorded, so that a restart does not spend it "
        "twice; add it",
    ),
    Rule(
        f"!({_PRIVATE}) || !has(self.health) || self.health.badSteps.action != 'Rollback'",
        f"{_FIELD}: each step spends budget, also one that a rollback undoes; set spec.health.badSteps.action to Skip "
        "or Fail",
    ),
)
"""Rules whose `self` is spec."""
