"""The norm of a gradient whose parts lie on many ranks."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from trainyard_trainer.mesh import RankMesh


def gradient_norm(parameters: Iterable[nn.Parameter], mesh: RankMesh | None) -> Tensor:
    """Euclidean norm over all parameters of the whole model, on every rank, still on the device."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if mesh is not None and mesh.sizes.pipeline > 1:
        squared = norm.square()
        dist.all_reduce(squared, group=mesh.group("pipeline"))
        norm = squared.sqrt()
    return norm
