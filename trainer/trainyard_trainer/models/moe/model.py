"""A llama with many experts in place of each feed-forward network; each token uses a few (Shazeer et al., 2017).

The routing is that of Mixtral (Jiang et al., 2024): the largest of the probabilities over all experts are taken, and
scaled to a sum of 1. No token is dropped, however many choose the same expert (Gale et al., 2023).

Letters besides those of the llama: X experts, C experts of each token, N rows, one for each token and expert of it.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.models.moe import MoeConfig
from trainyard_trainer.models.experts import ExpertLoad, inverse
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.runtime.torch_internals import all_reduce


class Moe(Llama):
    """Token ids [B, T] in, logits [B, T, V] of the next token out, or one pipeline stage of it."""

    residual_outputs = (*Llama.residual_outputs, ".experts.down")

    def __init__(self, config: MoeConfig, layers: range | None = None) -> None:
        super().__init__(config, layers, lambda: MixtureOfExperts(config))

    def mixtures(self) -> list["MixtureOfExperts"]:
        """Return the layers of experts in order."""
        return [cast(MixtureOfExperts, block.feed_forward) for block in self.layers()]


class MixtureOfExperts(nn.Module):
    """Residual stream [B, T, D] in, weighted sum of the results of each token's experts [B, T, D] out.

    Nothing here makes the host wait for the device, which would be once per layer and pass.
    """

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.router = Router(config.dim, config.experts)
        self.balance = LoadBalance(config.balance_loss_weight)
        self.load = ExpertLoad(config.experts)
        self.experts = Experts(config.dim, config.ffn_dim, config.experts)

    def forward(self, x_BTD: Tensor) -> Tensor:
        p_BTX = self.router(x_BTD).softmax(-1)
        chosen_BTC = p_BTX.detach().topk(self.experts_per_token).indices
        p_BTC = self.balance(p_BTX, chosen_BTC).gather(-1, chosen_BTC)
        weight_BTC = (p_BTC / p_BTC.sum(-1, keepdim=True)).to(x_BTD.dtype)

        # Rows in order of their experts.
        chosen_N = chosen_BTC.flatten()
        order_N = chosen_N.argsort(stable=True)
        count_X = torch.zeros_like(p_BTX[0, 0], dtype=torch.int64).scatter_add_(0, chosen_N, torch.ones_like(chosen_N))
        self.load.add(count_X)
        y_ND = self.experts(x_BTD.flatten(0, 1), order_N // self.experts_per_token, count_X)
        y_BTCD = y_ND.index_select(0, inverse(order_N)).view(*chosen_BTC.shape, -1)
        y_BTD: Tensor = (y_BTCD * weight_BTC.unsqueeze(-1)).sum(-2)
        return y_BTD


class Router(nn.Linear):
    """Scores of all experts [B, T, X] in float32, whatever type its inputs and its weight have.

    In bfloat16, with 8 bits, many experts of a token would have the same score (Lepikhin et al., 2020; Fedus et al.,
    2022, section 2.4).
    """

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__(dim, experts, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        with torch.autocast(x_BTD.device.type, enabled=False):
            return F.linear(x_BTD.float(), self.weight.float())


class Experts(nn.Module):
    """The matrices of all experts of a layer: a stack for gates, one for ups, one for downs."""

    def __init__(self, dim: int, ffn_dim: int, experts: int) -> None:
        super().__init__()
        self.core: nn.Module = GroupedSwiGlu()
        self.gate = nn.Parameter(torch.empty(experts, dim, ffn_dim))
        self.up = nn.Parameter(torch.empty(experts, dim, ffn_dim))
        self.down = nn.Parameter(torch.empty(experts, ffn_dim, dim))

    def forward(self, x_MD: Tensor, row_N: Tensor, count_X: Tensor) -> Tensor:
        """Return the results [N, D] of the rows `x_MD[row_N]`, which are in order of their experts."""
        y_ND: Tensor = self.core(x_MD, row_N, count_X, self.gate, self.up, self.down)
        return y_ND


class GroupedSwiGlu(nn.Module):
    """SwiGLU (Shazeer, 2020) of rows in order of their experts, each with the matrices of its expert. It has no
    parameters; it is a module of its own so that expert parallelism can wrap it.
    """

    def forward(
        self, x_MD: Tensor, row_N: Tensor, count_X: Tensor, gate_XDF: Tensor, up_XDF: Tensor, down_XFD: Tensor
    ) -> Tensor:
        row_ND = x_MD.index_select(0, row_N)
        end_X = count_X.cumsum(0).to(torch.int32)
        h_NF = F.silu(F.grouped_mm(row_ND, gate_XDF, offs=end_X)) * F.grouped_mm(row_ND, up_XDF, offs=end_X)
        return F.grouped_mm(h_NF, down_XFD, offs=end_X)


class LoadBalance(nn.Module):
    """Adds the gradient of an auxiliary loss that is lowest when all experts have the same load, but not its value.

    For each sequence the loss is the sum over the experts of f x P: f is the share of the tokens that chose an expert,
    times X / C, and P the mean of its probability (DeepSeek-V3, 2024, section 2.1.2). Since it concerns one sequence
    at a time, and is averaged over all sequences of the global batch, it is the same on every layout of the ranks.
    """

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient
        self.batch_tokens: int | None = None
        """Tokens of the global batch."""
        self.context: dist.ProcessGroup | None = None
        """Ranks that hold the other parts of the same sequences; None if this rank holds complete sequences."""

    def forward(self, p_BTX: Tensor, chosen_BTC: Tensor) -> Tensor:
        """Return the probabilities [B, T, X] unchanged; the load of the experts follows from the choices [B, T, C]."""
        if not torch.is_grad_enabled() or not self.coefficient:
            return p_BTX
        assert self.batch_tokens is not None, "set the number of tokens of the global batch"
        choice_BN = chosen_BTC.flatten(1)
        count_BX = p_BTX.new_zeros(p_BTX.shape[0], p_BTX.shape[2], requires_grad=False)
        count_BX.scatter_add_(1, choice_BN, torch.ones_like(choice_BN, dtype=count_BX.dtype))
        choices = choice_BN.shape[1]
        if self.context is not None:
            # Only the counts are exchanged: P is a sum over tokens, to which each rank adds its own.
            count_BX = all_reduce(count_BX, "sum", self.context)
            choices *= self.context.size()
        f_BX = count_BX * (p_BTX.shape[2] / choices)
        gradient_BX = f_BX * (self.coefficient / self.batch_tokens)
        balanced_BTX: Tensor = _AddGradient.apply(p_BTX, gradient_BX.unsqueeze(1))
        return balanced_BTX


class _AddGradient(torch.autograd.Function):
    """Returns a tensor unchanged, and adds a given tensor to its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (own,) = ctx.saved_tensors
        return gradients[0] + own, None
