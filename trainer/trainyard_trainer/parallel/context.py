"""Context parallelism: each rank holds a part of every sequence (Ulysses; Jacobs et al., 2023).

Around the attention the split changes from positions to heads and back, by one all-to-all each. So each rank computes
whole, causal attention for some of the heads, equally much on each rank, with whichever kernel is fastest.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard_trainer.models.transformer import Transformer
from trainyard_trainer.runtime.torch_internals import all_to_all_single_autograd


def split_context(model: Transformer, group: dist.ProcessGroup) -> None:
    """Let a model expect its rank's part of each sequence, in order of rank."""
    for block in model.layers():
        block.attention.core = Ulysses(block.attention.core, group)
    for mixture in model.mixtures():
        mixture.balance.context = group


class Ulysses(nn.Module):
    """Attention over whole sequences, given parts of them. C ranks, S = T / C positions each, G = H / C heads each."""

    def __init__(self, core: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.core = core
        self.group = group

    def forward(self, q_BHSE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
        y_BGTE = self.core(self._to_heads(q_BHSE), self._to_heads(k_BKSE), self._to_heads(v_BKSE))
        return self._to_positions(y_BGTE)

    def _to_heads(self, x_BHSE: Tensor) -> Tensor:
        """All heads of some positions become some heads of all positions."""
        x_CBGSE = torch.unflatten(x_BHSE, 1, (self.group.size(), -1)).movedim(1, 0)
        return self._exchange(x_CBGSE).movedim(0, 2).flatten(2, 3)

    def _to_positions(self, x_BGTE: Tensor) -> Tensor:
        """And back."""
        x_CBGSE = torch.unflatten(x_BGTE, 2, (self.group.size(), -1)).movedim(2, 0)
        return self._exchange(x_CBGSE).movedim(0, 1).flatten(1, 2)

    def _exchange(self, x: Tensor) -> Tensor:
        """Part i of the first dimension goes to rank i, and part i of the result came from it."""
        received: Tensor = all_to_all_single_autograd(x.contiguous(), None, None, self.group)
        return received
