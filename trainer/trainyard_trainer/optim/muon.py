"""Muon (Jordan et al., 2024) whose work is divided among the ranks that hold the same matrices or parts of them.

The update of a matrix is its momentum made orthogonal, by five iterations of matrix products on all of the matrix. If
every rank did that for every matrix, it would cost as much as a training step with a few thousand tokens per rank; so
each rank does it for some of the matrices. Matrices of one shape travel together, in bfloat16, in which the iterations
compute: one all-to-all brings all parts of a matrix to the rank that computes its update, another one takes the parts
of the update back (as in Liu et al., 2025, but with an all-to-all instead of gathering each matrix on its own).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by Jordan et al. for a steep slope at zero."""
ITERATIONS = 5
EPS = 1e-7
BATCH = 2**20
"""Scalars of small matrices of one shape that are orthogonalized at once on a rank: few kernels, little memory."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, sharded or not.

    The size of an update is that of AdamW's (0.2 RMS: Liu et al., 2025, section 2.2), so that one learning rate serves
    both. Weight decay is decoupled.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        *,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        """Prepare the updates of matrices.

        Args:
            parameters: matrices, in the same order on all ranks that hold the same ones.
            lr: learning rate.
            weight_decay: share of the matrix that is subtracted, times the learning rate.
            momentum: decay of the mean of gradients.
            nesterov: whether the update looks one gradient ahead.
        """
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(parameters, defaults)
        self.replicas: dist.ProcessGroup | None = None
        """Ranks that hold the same plain tensors, None if there are no others; those of a DTensor follow from its mesh.
        """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the matrices once from their gradients."""
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(_kind(parameter), []).append(parameter)
            for parameters in alike.values():
                division = divide(parameters[0], self.replicas)
                for start in range(0, len(parameters), division.at_once):
                    self._update(parameters[start : start + division.at_once], group, division)

    def _update(self, parameters: Sequence[nn.Parameter], group: dict[str, Any], division: "Division") -> None:
        """Update matrices of one kind."""
        momentum = group["momentum"]
        gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        means = [self._mean(parameter) for parameter in parameters]
        for gradient, mean in zip(gradients, means, strict=True):
            mean.lerp_(gradient, 1 - momentum)
        parts = [
            (gradients[index].lerp(means[index], momentum) if group["nesterov"] else means[index]).bfloat16()
            for index in division.own(len(parameters))
        ]
        updates = division.orthogonalized(parts, len(parameters), means[0])
        size = 0.2 * math.sqrt(max(parameters[0].shape))
        for parameter, update in zip(parameters, updates, strict=True):
            own = _local(parameter)
            own.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)

    def _mean(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of the mean of the gradients of a matrix."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return _local(state["momentum_buffer"])


class _Split(NamedTuple):
    """A dimension of a matrix that is divided among ranks."""

    group: dist.ProcessGroup
    dim: int
    size: int
    """Length of the dimension before it is divided."""


class Division:
    """How matrices of one kind are divided among ranks, and how their parts get to the ranks that need them."""

    def __init__(self, scalars: int, replicas: list[dist.ProcessGroup], splits: list[_Split]) -> None:
        """Describe the division.

        Args:
            scalars: scalars of one matrix.
            replicas: groups of ranks that hold the same parts.
            splits: divided dimensions, the one that was divided last coming first.
        """
        self._replicas, self._splits = replicas, splits
        groups = [*replicas, *(split.group for split in splits)]
        self._ranks = math.prod(group.size() for group in groups)
        self.at_once = self._ranks * max(1, BATCH // scalars)
        """Matrices whose parts travel together; each rank computes the update of an equal number of them."""

    def own(self, count: int) -> range:
        """Return which of `count` matrices, whose parts other ranks hold as well, are made orthogonal by the ranks that
        hold the parts of this rank's replica.
        """
        own = range(count + -count % self._ranks)
        for group in self._replicas:
            each = len(own) // group.size()
            own = own[group.rank() * each : (group.rank() + 1) * each]
        return range(min(own.start, count), min(own.stop, count))

    def orthogonalized(self, parts: list[Tensor], count: int, like: Tensor) -> list[Tensor]:
        """Return this rank's parts of orthogonal matrices.

        Args:
            parts: this rank's parts of the matrices of `own`, in bfloat16.
            count: number of matrices.
            like: a tensor of the shape of a part.
        """
        each = (count + -count % self._ranks) // math.prod(group.size() for group in self._replicas)
        missing = [torch.zeros_like(like, dtype=torch.bfloat16)] * (each - len(parts))
        part_KRC = torch.stack([*parts, *missing])
        for split in self._splits:
            part_KRC = _join(part_KRC, split)
        part_KRC = orthogonalize(part_KRC)
        for split in reversed(self._splits):
            part_KRC = _part(part_KRC, split)
        for group in reversed(self._replicas):
            gathered = part_KRC.new_empty(group.size() * len(part_KRC), *part_KRC.shape[1:])
            dist.all_gather_into_tensor(gathered, part_KRC.contiguous(), group)
            part_KRC = gathered
        return list(part_KRC[:count].unbind())


def divide(parameter: nn.Parameter, replicas: dist.ProcessGroup | None) -> Division:
    """Return how a matrix is divided; `replicas`: the ranks that hold the same matrix, if it is a plain tensor."""
    if not isinstance(parameter, DTensor):
        return Division(parameter.numel(), [replicas] if replicas is not None else [], [])
    mesh, shape = parameter.device_mesh, list(parameter.shape)
    same: list[dist.ProcessGroup] = []
    splits: list[_Split] = []
    # fully_shard has divided what a tensor group had divided before, and its mesh stands first.
    for axis in reversed(range(mesh.ndim)):
        placement = parameter.placements[axis]
        if mesh.size(axis) == 1:
            continue
        if placement.is_replicate():
            same.append(mesh.get_group(axis))
            continue
        dim: int = placement.dim  # type: ignore[attr-defined] # of Shard, or of what fully_shard makes of it
        splits.insert(0, _Split(mesh.get_group(axis), dim, shape[dim]))
        shape[dim] = math.ceil(shape[dim] / mesh.size(axis))
    return Division(parameter.numel(), same, splits)


def orthogonalize(x_KRC: Tensor) -> Tensor:
    """Return matrices of the same singular vectors whose singular values are near 1 (Newton-Schulz iteration)."""
    a, b, c = COEFFICIENTS
    tall = x_KRC.shape[1] > x_KRC.shape[2]
    x = x_KRC.mT if tall else x_KRC
    norm_K11 = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = x / norm_K11.clamp(min=EPS).to(x.dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _join(part_KRC: Tensor, split: _Split) -> Tensor:
    """Exchange some dimension's parts of K matrices for all of that dimension of K / ranks matrices."""
    ranks = split.group.size()
    padding = math.ceil(split.size / ranks) - part_KRC.shape[1 + split.dim]
    if padding:  # the last ranks have less
        sizes = (0, 0, 0, padding) if split.dim == 0 else (0, padding)
        part_KRC = nn.functional.pad(part_KRC, sizes)
    received = _all_to_all(part_KRC, split.group)
    whole = torch.cat(received.chunk(ranks), dim=1 + split.dim)
    return whole.narrow(1 + split.dim, 0, split.size)


def _part(whole_KRC: Tensor, split: _Split) -> Tensor:
    """Undo `_join`."""
    ranks, rank = split.group.size(), split.group.rank()
    length = math.ceil(split.size / ranks)
    padding = length * ranks - split.size
    if padding:
        sizes = (0, 0, 0, padding) if split.dim == 0 else (0, padding)
        whole_KRC = nn.functional.pad(whole_KRC, sizes)
    received = _all_to_all(torch.cat(whole_KRC.chunk(ranks, dim=1 + split.dim)), split.group)
    return received.narrow(1 + split.dim, 0, max(0, min(length, split.size - rank * length)))


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send part i of the first dimension to rank i; part i of the result is from rank i."""
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, x.contiguous(), group=group)
    return received


def _kind(parameter: nn.Parameter) -> tuple[Any, ...]:
    """Return what matrices that travel together have in common."""
    if isinstance(parameter, DTensor):
        return tuple(parameter.shape), parameter.device_mesh, tuple(parameter.placements)
    return (tuple(parameter.shape),)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
