"""`spec.trainer.optimizer` and `spec.trainer.schedule`: the optimizer and its learning rate."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, NonNegative, Positive, Rule, Tokens
from trainyard.optimizers import OPTIMIZERS, OptimizerInfo, OptimizerName, describe_defaults, takers


def _only_for(parameter: str) -> Rule:
    names = takers(parameter)
    return Rule(
        f"!has(self.{parameter}) || self.name in {names}",
        f"spec.trainer.optimizer.{parameter}: is a parameter of {', '.join(names)} only; remove it, or choose one of "
        "these as spec.trainer.optimizer.name",
    )


def _without_momentum() -> list[str]:
    """Return the optimizers that take nesterov and have no momentum by default."""
    return [name for name in takers("nesterov") if not OPTIMIZERS[name].defaults["momentum"]]  # type: ignore[index]


def _parameter(field: str, description: str, **limits: Any) -> Any:
    """Return a field of `Optimizer` that is absent by default, its documentation with the default of each optimizer."""
    return Field(default=None, description=f"{description} Default: {describe_defaults(field)}.", **limits)


class Optimizer(ApiModel):
    """The optimizer and its parameters. A parameter that is left out has the default of the optimizer."""

    if TYPE_CHECKING:
        name: OptimizerName = "adamw"
    else:
        name: Literal[tuple(OPTIMIZERS)] = Field(
            default="adamw",
            description="\n\n".join(f"{name}: {info.description}." for name, info in OPTIMIZERS.items()),
        )
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 3e-4
    """Peak learning rate; spec.trainer.schedule scales it at each step."""
    momentum: float | None = _parameter("momentum", "Share of the last update that is added to the next.", ge=0, lt=1)
    nesterov: bool | None = _parameter("nesterov", "Whether momentum is applied in Nesterov's form.")
    alpha: float | None = _parameter("alpha", "Decay rate of the mean of the squared gradient.", ge=0, lt=1)
    betas: tuple[float, ...] | None = _parameter(
        "betas", "Decay rates of the first and the second moment, each in [0, 1).", min_length=2, max_length=2
    )
    eps: float | None = _parameter("eps", "Term added to the denominator for numerical stability.", gt=0, le=1)
    weight_decay: float | None = _parameter(
        "weightDecay",
        "Weight decay of the parameters with two or more dimensions; adamw and muon decouple it from the gradient.",
        ge=0,
        le=10,
    )
    gradient_clip: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    """Largest global norm of the gradient: a gradient with a larger norm is scaled down to it. 0 turns clipping off."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        *map(_only_for, ("momentum", "nesterov", "alpha", "betas", "eps")),
        Rule(
            "!has(self.betas) || self.betas.all(b, b >= 0.0 && b < 1.0)",
            "spec.trainer.optimizer.betas: each must lie in [0, 1); the usual ones are [0.9, 0.95]",
        ),
        Rule(
            f"!(self.name in {_without_momentum()}) || !has(self.nesterov) || !self.nesterov ||"
            " (has(self.momentum) && self.momentum > 0.0)",
            "spec.trainer.optimizer.nesterov: needs momentum; set spec.trainer.optimizer.momentum, usually to 0.9",
        ),
    )

    @property
    def info(self) -> OptimizerInfo:
        """The entry of the table of optimizers."""
        return OPTIMIZERS[self.name]

    def parameters(self) -> dict[str, Any]:
        """Return the parameters besides the learning rate by their names in the CRD, defaults filled in."""
        given = self.to_dict()
        return {key: given.get(key, default) for key, default in self.info.defaults.items()}


class Schedule(ApiModel):
    """Learning rate over the run: a linear warm-up to the peak, then a constant or falling part. With
    spec.trainer.stop.tokens or epochs the falling part is a function of the tokens consumed, so it stays continuous if
    the batch changes when a run resumes; with spec.trainer.stop.steps of the step.
    """

    name: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Shape of the learning rate after the warm-up.
    constant: the peak.
    linear: a straight line down to minRatio x peak at the last step.
    cosine: half a period of a cosine down to minRatio x peak (Loshchilov and Hutter, 2017).
    wsd: the peak, then a straight line down to minRatio x peak over the last decaySteps steps (warmup-stable-decay; Hu
    et al., 2024)."""
    warmup_steps: NonNegative = 0
    """Number of first steps over which the learning rate rises linearly from 0 to the peak."""
    warmup_tokens: Tokens | None = None
    """Number of first tokens over which the learning rate rises, in place of warmupSteps; only with
    spec.trainer.stop.tokens or epochs."""
    decay_steps: Positive | None = None
    """wsd: number of last steps over which the learning rate falls. Default: a tenth of the run."""
    decay_tokens: Tokens | None = None
    """wsd: number of last tokens over which the learning rate falls, in place of decaySteps; only with
    spec.trainer.stop.tokens or epochs."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last step divided by the peak. Has no effect with constant."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.decaySteps) || self.name == 'wsd'",
            "spec.trainer.schedule.decaySteps: is for wsd only; remove it, or set spec.trainer.schedule.name: wsd",
        ),
        Rule(
            "!has(self.decayTokens) || (self.name == 'wsd' && !has(self.decaySteps))",
            "spec.trainer.schedule.decayTokens: is for wsd only, and replaces decaySteps; remove one of them, or set "
            "spec.trainer.schedule.name: wsd",
        ),
        Rule(
            "!has(self.warmupTokens) || self.warmupSteps == 0",
            "spec.trainer.schedule.warmupTokens: replaces warmupSteps; remove one of them",
        ),
    )
