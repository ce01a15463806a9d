"""The norm of a gradient whose parts lie on many ranks, and clipping by it.

Both compute with each rank's own parts. As operations on DTensors they would take seconds to be planned in the first
step, and could not take parameters that are split over different ranks, as experts and the rest of a model are.
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
"""A mesh, and the number of one of its dimensions."""


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], mesh: RankMesh | None) -> Tensor:
    """Euclidean norm over all parameters of the whole model, on every rank, still on the device."""
    parts: dict[tuple[Axis, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            part, axes = _part(parameter.grad)
            parts.setdefault(axes, []).append(part)
    squares = [_sum_over(axes, _square(own)) for axes, own in parts.items()]
    square = torch.stack(squares).sum()
    if mesh is not None and mesh.sizes.pipeline > 1:
        dist.all_reduce(square, group=mesh.group("pipeline"))
    return square.sqrt()


@torch.no_grad()
def clip_gradient(parameters: Iterable[nn.Parameter], limit: float, norm: Tensor) -> None:
    """Scale the gradient down to the largest norm allowed, given the norm that it has."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # As torch.nn.utils.clip_grads_with_norm_ has it.
    foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))


def _part(gradient: Tensor) -> tuple[Tensor, tuple[Axis, ...]]:
    """This rank's part of a gradient, and the axes whose ranks hold other parts of it."""
    if not isinstance(gradient, DTensor):
        return gradient, ()
    mesh = gradient.device_mesh
    if any(placement.is_partial() for placement in gradient.placements):
        # Gains of norms in a tensor group: each rank has the sum over its own positions.
        summed = [Replicate() if placement.is_partial() else placement for placement in gradient.placements]
        gradient = gradient.redistribute(mesh, summed)
    split = tuple(
        (mesh, dim)
        for dim, placement in enumerate(gradient.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )
    return gradient.to_local(), split


def _square(parts: list[Tensor]) -> Tensor:
    """Sum of the squares of all numbers."""
    return torch.stack(foreach_norm(parts)).square().sum()


def _sum_over(axes: tuple[Axis, ...], value: Tensor) -> Tensor:
    for mesh, dim in axes:
        dist.all_reduce(value, group=mesh.get_group(dim))
    return value
