"""How each optimizer of `trainyard.optimizers` is made from torch's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trainyard.optimizers import OptimizerName
from trainyard.resource.optimization import Optimizer
from trainyard_trainer.optim.muon import Muon

Named = Sequence[tuple[str, nn.Parameter]]
Builder = Callable[[Named, Optimizer], list[torch.optim.Optimizer]]
"""Makes the torch optimizers that together step the given parameters: one, or more if they treat some differently."""


def _gd(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(_groups(named, config), config.learning_rate, foreach=True)]


def _sgd(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    own = {key: config.parameters()[key] for key in ("momentum", "nesterov")}
    return [torch.optim.SGD(_groups(named, config), config.learning_rate, **own, foreach=True)]


def _adagrad(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    eps = config.parameters()["eps"]
    return [torch.optim.Adagrad(_groups(named, config), config.learning_rate, eps=eps, foreach=True)]


def _rmsprop(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    own = {key: config.parameters()[key] for key in ("alpha", "momentum", "eps")}
    return [torch.optim.RMSprop(_groups(named, config), config.learning_rate, **own, foreach=True)]


def _adam(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    # fused: one pass over memory for all parameters, several times faster than one kernel per operation.
    return [torch.optim.Adam(_groups(named, config), config.learning_rate, **_moments(config), fused=True)]


def _adamw(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(_groups(named, config), config.learning_rate, **_moments(config), fused=True)]


def _muon(named: Named, config: Optimizer) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all other parameters."""
    matrices = [parameter for name, parameter in named if is_inner_matrix(name, parameter)]
    others = [(name, parameter) for name, parameter in named if not is_inner_matrix(name, parameter)]
    optimizers: list[torch.optim.Optimizer] = []
    # A rank may hold no such matrix (an mlp has none) or nothing else (a stage in the middle of a pipeline).
    if matrices:
        own = config.parameters()
        muon = Muon(
            matrices,
            config.learning_rate,
            weight_decay=own["weightDecay"],
            momentum=own["momentum"],
            nesterov=own["nesterov"],
        )
        optimizers.append(muon)
    return optimizers + (_adamw(others, config) if others else [])


BUILDERS: dict[OptimizerName, Builder] = {
    "gd": _gd,
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
}
"""The builder of each optimizer; a package outside of this repository adds its own."""


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix between hidden layers, so of a block: not the embedding, not the head.

    A router is not: its rows are one vector per expert, each compared with the tokens on its own.
    """
    return parameter.ndim == 2 and "blocks." in name and not name.endswith(".router.weight")


def _groups(named: Named, config: Optimizer) -> list[dict[str, Any]]:
    """Return torch's parameter groups: weight decay applies to matrices and stacks, not to gains and biases."""
    parameters = [parameter for _, parameter in named]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    decay = config.parameters().get("weightDecay", 0.0)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _moments(config: Optimizer) -> dict[str, Any]:
    own = config.parameters()
    first, second = own["betas"]
    return {"betas": (float(first), float(second)), "eps": own["eps"]}
