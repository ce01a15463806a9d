"""Cross-entropy whose only large tensor is the logits themselves.

torch's cross_entropy of a large vocabulary holds, besides the logits, a copy in float32, their log-softmax, and the
gradients of both: 12 GiB for 16,384 tokens and 65,536 entries. Here rows are taken chunk by chunk, only the logarithm
of each row's sum is kept, and the gradient replaces the logits in their own memory, as nothing needs them any more (the
backward pass of the head needs its inputs and its weight). Computed in float32, whatever type the logits have.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainyard_trainer.data.samples import IGNORED
from trainyard_trainer.parallel import compilation

CHUNK = 2**24
"""Logits that are computed with at once: 64 MiB in float32, enough for a GPU to be busy with each kernel."""

Gradient = Callable[[Tensor, Tensor, Tensor, Tensor], None]


class TokenLosses:
    """Sum of the cross-entropies of many tokens."""

    def __init__(self, *, compiled: bool) -> None:
        """`compiled`: whether the gradient is one kernel, made by torch.compile, instead of one for each operation."""
        # The last chunk may be smaller.
        self._gradient: Gradient = write_gradient
        if compiled:
            self._gradient = torch.compile(write_gradient, dynamic=True, fullgraph=True, backend=compilation.BACKEND)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum in nats, a scalar in float32 that is the same on all ranks of a tensor group.

        The backward pass overwrites the logits, so there can be one only.

        Args:
            logits: [B, T, V] for text, [N, classes] for tables; a DTensor if a tensor group divides the vocabulary.
            targets: [B, T], or [N]; `IGNORED` where nothing is to be predicted.
        """
        group, first = None, 0
        if isinstance(logits, DTensor):
            group = logits.device_mesh.get_group()
            logits = logits.to_local()
            first = group.rank() * logits.shape[-1]
        own: Tensor = _CrossEntropy.apply(logits.flatten(0, -2), targets.flatten(), group, first, self._gradient)
        return own


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of N rows, of whose V logits this rank has those from `first` on."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, group: dist.ProcessGroup | None, first: int, gradient: Gradient
    ) -> Tensor:
        size = logits_NV.shape[-1]
        own_N = (target_N >= first) & (target_N < first + size)
        index_N = torch.where(own_N, target_N - first, 0)
        if group is None:
            nll_N, log_sum_N = _of_complete_rows(logits_NV, index_N)
        else:
            nll_N, log_sum_N = _of_divided_rows(logits_NV, index_N, own_N, group)
        counts_N = target_N != IGNORED
        ctx.save_for_backward(logits_NV, log_sum_N, index_N, own_N, counts_N)
        ctx.gradient = gradient
        return torch.where(counts_N, nll_N, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        kept_NV, log_sum_N, index_N, own_N, counts_N = ctx.saved_tensors
        logits_NV = kept_NV.detach()
        scale_N = torch.where(counts_N, gradients[0], 0.0)
        hit_N = torch.where(own_N, scale_N, 0.0)
        for rows in _chunks(logits_NV):
            ctx.gradient(logits_NV[rows], log_sum_N[rows], index_N[rows], torch.stack((scale_N[rows], hit_N[rows])))
        return logits_NV, None, None, None, None


def write_gradient(logits_RV: Tensor, log_sum_R: Tensor, index_R: Tensor, scales_2R: Tensor) -> None:
    """Replace logits by their gradient: the probabilities, less 1 at the target, times a scale.

    Args:
        logits_RV: some rows of logits, which are overwritten.
        log_sum_R: logarithm of the sum of the exponentials of each row.
        index_R: column of each target; any, if another rank has it.
        scales_2R: factors of the probabilities, and of the 1 at the target: 0 if another rank has it.
    """
    # In float32 the first operation works in place, so that there is no second tensor of this size.
    out = logits_RV if logits_RV.dtype == torch.float32 else None
    p_RV = torch.sub(logits_RV, log_sum_R[:, None], out=out).exp_().mul_(scales_2R[0, :, None])
    p_RV.scatter_add_(1, index_R[:, None], -scales_2R[1, :, None])
    if out is None:
        logits_RV.copy_(p_RV)


def _of_complete_rows(logits_NV: Tensor, index_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row, and the logarithm of the sum of its exponentials."""
    nll_N = torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    for rows in _chunks(logits_NV):
        # One kernel, which converts as well.
        log_p_RV = torch.log_softmax(logits_NV[rows], -1, dtype=torch.float32)
        nll_N[rows] = -log_p_RV.gather(1, index_N[rows, None]).squeeze(1)
    return nll_N, _at(logits_NV, index_N) + nll_N


def _of_divided_rows(
    logits_NV: Tensor, index_N: Tensor, own_N: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Return the same for rows whose other logits are on the other ranks of a group: two numbers of each row travel."""
    own_2N = torch.empty(2, len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    for rows in _chunks(logits_NV):
        own_2N[0, rows] = logits_NV[rows].float().logsumexp(-1)
    own_2N[1] = torch.where(own_N, _at(logits_NV, index_N), 0.0)
    all_2GN = own_2N.new_empty(2 * group.size(), own_2N.shape[1])
    dist.all_gather_into_tensor(all_2GN, own_2N, group)
    log_sum_GN, target_GN = all_2GN.view(-1, *own_2N.shape).unbind(1)
    log_sum_N = log_sum_GN.logsumexp(0)
    return log_sum_N - target_GN.sum(0), log_sum_N


def _at(logits_NV: Tensor, index_N: Tensor) -> Tensor:
    return logits_NV.gather(1, index_N[:, None]).squeeze(1).float()


def _chunks(logits_NV: Tensor) -> list[slice]:
    """Return ranges of rows with at most `CHUNK` logits each."""
    count, size = logits_NV.shape
    rows = max(1, CHUNK // size)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
