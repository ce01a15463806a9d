"""`spec.trainer.optimizer` and `schedule`: how the parameters follow the gradient."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, NonNegative, Positive, Rule

OPTIMIZER_PARAMETERS: dict[str, dict[str, Any]] = {
    "gd": {"weightDecay": 0.0},
    "sgd": {"momentum": 0.0, "nesterov": False, "weightDecay": 0.0},
    "adagrad": {"eps": 1e-10, "weightDecay": 0.0},
    "rmsprop": {"alpha": 0.99, "momentum": 0.0, "eps": 1e-8, "weightDecay": 0.0},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weightDecay": 0.0},
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8, "weightDecay": 0.1},
    "muon": {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "eps": 1e-8, "weightDecay": 0.1},
}
"""What each algorithm takes beside its learning rate, and the defaults."""


def _only_for(parameter: str) -> Rule:
    owners = [name for name, taken in OPTIMIZER_PARAMETERS.items() if parameter in taken]
    return Rule(
        f"!has(self.{parameter}) || self.name in {owners}",
        f"spec.trainer.optimizer.{parameter}: is a parameter of {', '.join(owners)} only; remove it, or choose one of "
        "these as spec.trainer.optimizer.name",
    )


class Optimizer(ApiModel):
    """How the parameters follow the gradient. A parameter left out has the default of the algorithm."""

    name: Literal["gd", "sgd", "adagrad", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    """gd: gradient descent, each step over all samples. sgd: stochastic, over a batch of them. adagrad (Duchi et al.,
    2011), rmsprop (Hinton, 2012), adam (Kingma and Ba, 2015), adamw (Loshchilov and Hutter, 2019), muon (Jordan et al.,
    2024; for the matrices inside the blocks, and adamw for the rest, the experts of a moe included)."""
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 3e-4
    """Peak learning rate; the schedule scales it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the last update that goes into the next. sgd, rmsprop: 0; muon: 0.95."""
    nesterov: bool | None = None
    """Nesterov's form of momentum. sgd: false; muon: true."""
    alpha: Annotated[float, Field(ge=0, lt=1)] | None = None
    """rmsprop: decay of the mean of the squared gradient; 0.99."""
    betas: Annotated[tuple[float, ...], Field(min_length=2, max_length=2)] | None = None
    """Decay of the first and of the second moment, each in [0, 1). adam: [0.9, 0.999]; adamw, muon: [0.9, 0.95]."""
    eps: Annotated[float, Field(gt=0, le=1)] | None = None
    """Added to the denominator. adagrad: 1e-10; else 1e-8."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = None
    """Weight decay of the parameters with two or more dimensions; with adamw and muon decoupled from the gradient.
    adamw, muon: 0.1; else 0."""
    gradient_clip: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        *map(_only_for, ("momentum", "nesterov", "alpha", "betas", "eps")),
        Rule(
            "!has(self.betas) || self.betas.all(b, b >= 0.0 && b < 1.0)",
            "spec.trainer.optimizer.betas: each must lie in [0, 1); the usual ones are [0.9, 0.95]",
        ),
        Rule(
            "self.name != 'sgd' || !has(self.nesterov) || !self.nesterov ||"
            " (has(self.momentum) && self.momentum > 0.0)",
            "spec.trainer.optimizer.nesterov: needs momentum; set spec.trainer.optimizer.momentum, usually to 0.9",
        ),
    )

    def parameters(self) -> dict[str, Any]:
        """All parameters of the algorithm beside the learning rate (names as in the CRD), defaults filled in."""
        given = self.to_dict()
        return {key: given.get(key, default) for key, default in OPTIMIZER_PARAMETERS[self.name].items()}


class Schedule(ApiModel):
    """The learning rate over the steps: linear warm-up to the peak, then a shape."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """constant: the peak. linear: straight down to minRatio at the last step. cosine: half a cosine down to it
    (Loshchilov and Hutter, 2017). wsd: the peak, then straight down to minRatio over the last decaySteps (warm-up,
    stable, decay; Hu et al., 2024)."""
    warmup_steps: NonNegative = 0
    """Steps of linear warm-up from 0 to the peak."""
    decay_steps: Positive | None = None
    """wsd: steps of the decay; a tenth of all steps if absent."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last step, as a share of the peak (constant has none)."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.decaySteps) || self.name == 'wsd'",
            "spec.trainer.schedule.decaySteps: is for wsd only; remove it, or set spec.trainer.schedule.name: wsd",
        ),
    )
