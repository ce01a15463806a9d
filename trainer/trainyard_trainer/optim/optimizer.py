"""The optimizer of a run."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from trainyard.resource.optimization import Optimizer
from trainyard_trainer.optim.builders import BUILDERS

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


def build_optimizers(named: Named, config: Optimizer) -> Optimizers:
    """Return the optimizer that spec.trainer.optimizer asks for, over parameters given with their names.

    Raises:
        ValueError: the trainer has no builder for it.
    """
    if config.name not in BUILDERS:
        raise ValueError(
            f"spec.trainer.optimizer.name: {config.name} has no builder in this trainer; register one in "
            "trainyard_trainer.optim.builders.BUILDERS, or choose another optimizer"
        )
    return Optimizers(BUILDERS[config.name](list(named), config))
