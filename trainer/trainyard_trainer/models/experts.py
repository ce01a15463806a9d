"""What layers of experts have in common, in whatever model: the order of their rows, and the load of each expert."""

import torch
from torch import Tensor, nn


def inverse(order_N: Tensor) -> Tensor:
    """Return the permutation that puts rows back which `order_N` has taken out of their order."""
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))


class ExpertLoad(nn.Module):
    """Counts the rows that each expert of a layer gets in training, on the device, until they are taken.

    Activation checkpointing counts each row twice, so only ratios between experts have a meaning.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self._count_X: Tensor | None = None  # not a buffer: it is no part of the model

    def add(self, count_X: Tensor) -> None:
        """Add the rows of one forward pass [experts]; evaluations do not count."""
        if torch.is_grad_enabled():
            self._count_X = count_X if self._count_X is None else self._count_X + count_X

    def take(self) -> Tensor | None:
        """Return the rows of each expert [experts] since the last call; None without any."""
        count_X, self._count_X = self._count_X, None
        return count_X
