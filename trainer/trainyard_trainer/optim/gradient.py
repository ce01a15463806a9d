"""The norm of a gradient whose shards are on many ranks, and clipping by it.

Both compute with each rank's own shards. As operations on DTensors they would take seconds to plan in the first step,
and could not combine parameters on different meshes, as experts and the other parameters of a model are.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.runtime.torch_internals import foreach_mul_, foreach_norm

Axis = tuple[DeviceMesh, int]
"""A mesh, and the index of one of its dimensions."""


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], mesh: RankMesh | None) -> Tensor:
    """Return the Euclidean norm of the gradient of the whole model: the same scalar on every rank, on its device.

    Without a mesh, this rank holds all parameters.
    """
    shards: dict[tuple[Axis, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shard, axes = _local_shard(parameter.grad)
            shards.setdefault(axes, []).append(shard)
    squares = [_sum_over(axes, _square(local)) for axes, local in shards.items()]
    square = torch.stack(squares).sum()
    if mesh is not None and mesh.sizes.pipeline > 1:
        dist.all_reduce(square, group=mesh.group("pipeline"))
    return square.sqrt()


@torch.no_grad()
def clip_gradient(parameters: Iterable[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale the gradient down to the norm `limit` if its `norm`, a scalar, is larger."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    shards = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # The same formula as torch.nn.utils.clip_grads_with_norm_.
    foreach_mul_(shards, (limit / (norm + 1e-6)).clamp(max=1.0))


def _local_shard(gradient: Tensor) -> tuple[Tensor, tuple[Axis, ...]]:
    """Return this rank's shard of a gradient, and the axes whose ranks hold the other shards."""
    if not isinstance(gradient, DTensor):
        return gradient, ()
    mesh = gradient.device_mesh
    if any(placement.is_partial() for placement in gradient.placements):
        # Gains of norms in a tensor group: each rank holds the sum over its own positions.
        summed = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(mesh, summed)
    split = tuple(
        (mesh, dim)
        for dim, placement in enumerate(gradient.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )
    return gradient.to_local(), split


def _square(shards: list[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, a scalar."""
    return torch.stack(foreach_norm(shards)).square().sum()


def _sum_over(axes: tuple[Axis, ...], value: Tensor) -> Tensor:
    """Return the sum of a scalar over the ranks of some axes."""
    for mesh, dim in axes:
        dist.all_reduce(value, group=mesh.get_group(dim))
    return value
