"""Initial values of parameters: a function of the seed and of a parameter's name and shape, and of nothing else."""

import hashlib
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Initial(Protocol):
    """Says how the values of a parameter are spread."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean and deviation of the normal distribution."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int, initial: Initial) -> None:
    """Fill every parameter.

    The values are the same however the model is split over processes, and whatever else is in it, so that layouts can
    be compared from the first step on.
    """
    for name, parameter in model.named_parameters():
        mean, deviation = initial(name, tuple(parameter.shape))
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        whole = torch.empty(parameter.shape, device="cpu").normal_(mean, deviation, generator=generator)
        parameter.copy_(_own_part(whole, parameter))


def _own_part(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """Each rank has drawn all of a parameter and keeps its part; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes 63 bits without a sign
