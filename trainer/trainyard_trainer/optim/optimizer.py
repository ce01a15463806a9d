"""The optimizer of a run, and its learning rate over time."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from trainyard.resource.optimization import Optimizer, Schedule
from trainyard_trainer.optim.builders import BUILDERS
from trainyard_trainer.optim.muon import Muon

Named = Iterable[tuple[str, nn.Parameter]]


class Optimizers:
    """One or more torch optimizers that divide the parameters among them and step as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of all following steps."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate

    def step(self) -> None:
        """Update the parameters once from their gradients."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad()


def build_optimizers(named: Named, config: Optimizer, replicas: dist.ProcessGroup | None = None) -> Optimizers:
    """Return the optimizer that spec.trainer.optimizer asks for, over parameters given with their names.

    `replicas`: the ranks that hold the same plain tensors, if there are several; Muon divides its work among them.

    Raises:
        ValueError: the trainer has no builder for it.
    """
    if config.name not in BUILDERS:
        raise ValueError(
            f"spec.trainer.optimizer.name: {config.name} has no builder in this trainer; register one in "
            "trainyard_trainer.optim.builders.BUILDERS, or choose another optimizer"
        )
    parts = BUILDERS[config.name](list(named), config)
    for part in parts:
        if isinstance(part, Muon):
            part.replicas = replicas
    return Optimizers(parts)


def learning_rate_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 1 to total_steps, divided by the peak."""
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
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return schedule.min_ratio + (1 - schedule.min_ratio) * remaining
