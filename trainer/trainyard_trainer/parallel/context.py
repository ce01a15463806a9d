"""Context parallelism: each rank holds a part of every sequence (Ulysses; Jacobs et al., 2023).

Before attention the split changes from positions to heads by an all-to-all, and back after it. So each rank computes
causal attention over complete sequences for some of the heads, the same amount on each rank, with the fastest kernel.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard_trainer.models.family import ParallelPlan
from trainyard_trainer.runtime.torch_internals import all_to_all_single_autograd


def apply_context_parallel(plan: ParallelPlan, group: dist.ProcessGroup) -> None:
    """Make a model compute with this rank's part of each sequence; parts are in order of rank."""
    for attention in plan.attentions():
        attention.core = Ulysses(attention.core, group)
    for balance in plan.load_balances():
        balance.context = group


class Ulysses(nn.Module):
    """Attention over complete sequences, given parts of them.

    C ranks, S = T / C positions and G = H / C heads on each.
    """

    def __init__(self, core: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.core = core
        self.group = group

    def forward(self, q_BHSE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Any = None) -> Tensor:
        # A mask is of complete sequences.
        y_BGTE = self.core(self._to_heads(q_BHSE), self._to_heads(k_BKSE), self._to_heads(v_BKSE), mask)
        return self._to_positions(y_BGTE)

    def _to_heads(self, x_BHSE: Tensor) -> Tensor:
        """Exchange all heads of some positions for some heads of all positions."""
        x_CBGSE = torch.unflatten(x_BHSE, 1, (self.group.size(), -1)).movedim(1, 0)
        return self._exchange(x_CBGSE).movedim(0, 2).flatten(2, 3)

    def _to_positions(self, x_BGTE: Tensor) -> Tensor:
        """Exchange some heads of all positions for all heads of some positions."""
        x_CBGSE = torch.unflatten(x_BGTE, 2, (self.group.size(), -1)).movedim(2, 0)
        return self._exchange(x_CBGSE).movedim(0, 1).flatten(1, 2)

    def _exchange(self, x: Tensor) -> Tensor:
        """Send part i of the first dimension to rank i; part i of the result is from rank i."""
        received: Tensor = all_to_all_single_autograd(x.contiguous(), None, None, self.group)
        return received
