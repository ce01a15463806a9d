"""Initial values of parameters, a function of the seed and of the parameter's name and shape alone."""

import hashlib
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Initial(Protocol):
    """Gives the normal distribution of a parameter's initial values."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return mean and standard deviation."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int, initial: Initial) -> None:
    """Fill every parameter with its initial values.

    They do not depend on how the model is divided among ranks, nor on its other parameters, so that layouts can be
    compared from the first step.
    """
    for name, parameter in model.named_parameters():
        mean, deviation = initial(name, tuple(parameter.shape))
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        values = torch.empty(parameter.shape, device="cpu").normal_(mean, deviation, generator=generator)
        parameter.copy_(_own_part(values, parameter))


def _own_part(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return this rank's part of a parameter, all of which each rank has drawn; nothing is communicated."""
    if not isinstance(parameter, DTensor):
        return values
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(values.to(parameter.device), mesh, placements, src_data_rank=None)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes 63 bits
