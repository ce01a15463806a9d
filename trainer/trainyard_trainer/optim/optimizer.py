"""The optimizers, and their learning rate over time."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from trainyard.resource.optimization import Optimizer, Schedule

Named = Iterable[tuple[str, nn.Parameter]]


class Optimizers:
    """One or two torch optimizers that share the parameters, and step as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the steps from now on."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate

    def step(self) -> None:
        """Follow the gradient once."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradient."""
        for part in self.parts:
            part.zero_grad()


def build_optimizers(named: Named, config: Optimizer) -> Optimizers:
    """The algorithm with its parameters; weight decay spares gains of norms and all else below two dimensions."""
    named = list(named)
    if config.name != "muon":
        return Optimizers([_build(config.name, [p for _, p in named], config)])
    matrices = [p for name, p in named if _is_inner_matrix(name, p)]
    rest = [p for name, p in named if not _is_inner_matrix(name, p)]
    parts = [_build("muon", matrices, config)] if matrices else []
    return Optimizers([*parts, _build("adamw", rest, config)] if rest else parts)


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon is for matrices between hidden layers; embedding and head are no such maps."""
    return parameter.ndim == 2 and "blocks." in name


def _build(algorithm: str, parameters: list[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    own = config.parameters()
    rate = config.learning_rate
    groups = _decay_groups(parameters, own.get("weightDecay", 0.0))
    # fused: one pass over memory for all parameters, several times faster than one kernel per operation.
    match algorithm:
        case "gd":
            return torch.optim.SGD(groups, rate, foreach=True)
        case "sgd":
            return torch.optim.SGD(groups, rate, momentum=own["momentum"], nesterov=own["nesterov"], foreach=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, rate, eps=own["eps"], foreach=True)
        case "rmsprop":
            own = {key: own[key] for key in ("alpha", "momentum", "eps")}
            return torch.optim.RMSprop(groups, rate, **own, foreach=True)
        case "adam":
            return torch.optim.Adam(groups, rate, betas=_pair(own), eps=own["eps"], fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, rate, betas=_pair(own), eps=own["eps"], fused=True)
        case _:
            # The update is scaled to the size of AdamW's, so that one learning rate serves both.
            scale = {"adjust_lr_fn": "match_rms_adamw", "momentum": own["momentum"], "nesterov": own["nesterov"]}
            return torch.optim.Muon(parameters, rate, weight_decay=own["weightDecay"], **scale)


def _decay_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _pair(own: dict[str, Any]) -> tuple[float, float]:
    first, second = own["betas"]
    return float(first), float(second)


def learning_rate_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step, from 1 to total_steps."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    start = schedule.warmup_steps
    if schedule.name == "wsd":
        start = max(start, total_steps - (schedule.decay_steps or max(1, total_steps // 10)))
    if step <= start:
        return 1.0
    progress = (step - start) / (total_steps - start)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return schedule.min_ratio + (1 - schedule.min_ratio) * left
