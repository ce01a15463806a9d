"""The optimizers: what each one is called, its parameters with their defaults, and the memory that it needs.

The enum and the rules of `spec.trainer.optimizer`, its documentation and the memory estimate follow from this table;
`trainyard_trainer.optim.builders` holds one function for each entry, which makes the torch optimizer.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

Parameters = Mapping[str, Any]
"""Parameters of an optimizer by their names in the CRD, defaults filled in."""


def none(_parameters: Parameters) -> int:
    """Return 0: the optimizer needs no memory of this kind."""
    return 0


@dataclass(frozen=True, slots=True)
class OptimizerInfo:
    """One optimizer, without its implementation."""

    description: str
    """Algorithm and source in a phrase, for the reference of `spec.trainer.optimizer.name`."""
    defaults: Parameters
    """The parameters that it takes besides the learning rate, by their names in the CRD, with their defaults."""
    state_scalars: Callable[[Parameters], int] = none
    """Scalars of state that it keeps for each scalar of a parameter."""
    matrix_state_scalars: Callable[[Parameters], int] | None = None
    """Scalars of state for each scalar of a matrix inside the blocks of a model; None: `state_scalars`."""
    temporary_scalars: Callable[[Parameters], int] = none
    """Scalars of intermediate results for each scalar of a parameter that live during a step. torch's foreach
    implementations make them for all parameters at once, fused ones make none."""
    matrix_temporary_scalars: int = 0
    """Scalars of intermediate results for each scalar of the largest matrix inside the blocks, if it takes one matrix
    after the other."""
    full_batch: bool = False
    """Whether each step is over all samples, so that there is no `spec.trainer.batch.global`."""


def _has_momentum(parameters: Parameters) -> int:
    return int(bool(parameters["momentum"]))


def _decays(parameters: Parameters) -> int:
    return int(bool(parameters["weightDecay"]))


if TYPE_CHECKING:
    OptimizerName = Literal["gd", "sgd", "adagrad", "rmsprop", "adam", "adamw", "muon"]

OPTIMIZERS: "dict[OptimizerName, OptimizerInfo]" = {
    "gd": OptimizerInfo(
        description="gradient descent, each step over all samples",
        defaults={"weightDecay": 0.0},
        temporary_scalars=_decays,
        full_batch=True,
    ),
    "sgd": OptimizerInfo(
        description="stochastic gradient descent, each step over a batch of samples",
        defaults={"momentum": 0.0, "nesterov": False, "weightDecay": 0.0},
        state_scalars=_has_momentum,
        temporary_scalars=_decays,
    ),
    "adagrad": OptimizerInfo(
        description="step sizes from the sum of all squared gradients (Duchi et al., 2011)",
        defaults={"eps": 1e-10, "weightDecay": 0.0},
        state_scalars=lambda _: 1,
        temporary_scalars=lambda _: 2,
    ),
    "rmsprop": OptimizerInfo(
        description="step sizes from a moving mean of the squared gradients (Hinton, 2012)",
        defaults={"alpha": 0.99, "momentum": 0.0, "eps": 1e-8, "weightDecay": 0.0},
        state_scalars=lambda parameters: 1 + _has_momentum(parameters),
        temporary_scalars=lambda parameters: 1 + _decays(parameters),
    ),
    "adam": OptimizerInfo(
        description="moving means of the gradients and of their squares (Kingma and Ba, 2015)",
        defaults={"betas": (0.9, 0.999), "eps": 1e-8, "weightDecay": 0.0},
        state_scalars=lambda _: 2,
    ),
    "adamw": OptimizerInfo(
        description="adam with weight decay decoupled from the gradient (Loshchilov and Hutter, 2019)",
        defaults={"betas": (0.9, 0.95), "eps": 1e-8, "weightDecay": 0.1},
        state_scalars=lambda _: 2,
    ),
    "muon": OptimizerInfo(
        description=(
            "momentum made orthogonal (Jordan et al., 2024) for the matrices inside the blocks, and adamw for all "
            "other parameters, the experts and routers of a moe among them"
        ),
        defaults={"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "eps": 1e-8, "weightDecay": 0.1},
        state_scalars=lambda _: 2,
        matrix_state_scalars=lambda _: 1,
        matrix_temporary_scalars=4,
    ),
}
"""The optimizers by name, in the order of the documentation.

A package outside of this repository adds its own with `register`, before `trainyard.resource` is imported.
"""

if not TYPE_CHECKING:
    OptimizerName = str


def register(name: str, info: OptimizerInfo) -> None:
    """Add an optimizer; call this before `trainyard.resource` is imported, whose types are made from the table.

    Raises:
        ValueError: the name is taken.
        RuntimeError: the types were made already, without the optimizer.
    """
    if "trainyard.resource.optimization" in sys.modules:
        raise RuntimeError(f"optimizer {name}: register it before trainyard.resource is imported")
    if name in OPTIMIZERS:
        raise ValueError(f"optimizer {name}: is registered already; choose another name")
    OPTIMIZERS[name] = info  # type: ignore[index]


def takers(parameter: str) -> list[str]:
    """Return the names of the optimizers that take a parameter, given by its name in the CRD."""
    return [name for name, info in OPTIMIZERS.items() if parameter in info.defaults]


def describe_defaults(parameter: str) -> str:
    """Return a sentence with the default of a parameter for each optimizer that takes it: `sgd: 0.0; muon: 0.95`."""
    names: dict[str, list[str]] = {}
    for name in takers(parameter):
        default = OPTIMIZERS[name].defaults[parameter]  # type: ignore[index]
        names.setdefault(_as_yaml(default), []).append(name)
    return "; ".join(f"{', '.join(owners)}: {default}" for default, owners in names.items())


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else f"{value:g}"
