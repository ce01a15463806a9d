"""The optimizer of a run."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard.resource.optimization import Optimizer
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

    def step(self, applied: Tensor | None = None) -> None:
        """Update the parameters once from their gradients.

        Args:
            applied: a truth value on the device; if it is false, parameters and state stay as they are. None: true.
        """
        for part in self.parts:
            if applied is None:
                part.step()
            # The kernels of fused optimizers look at the flag themselves, on the device.
            elif getattr(part, "_step_supports_amp_scaling", False):
                part.found_inf = (~applied).float()  # type: ignore[attr-defined]
                part.step()
            # All others step or do not: the host waits for the device.
            elif bool(applied):
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
