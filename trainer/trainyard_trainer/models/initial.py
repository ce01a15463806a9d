"""Initial values of parameters: a function of the seed, of the parameter's name, and of the element's place in it.

Random bits are not drawn one after the other but computed from these (a counter-based generator; Salmon et al., 2011),
so that each rank computes its own part alone, on its device, and all layouts begin with the same values.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainyard_trainer.runtime.torch_internals import local_offsets

CPU_CHUNK, CUDA_CHUNK = 1 << 16, 1 << 24
"""Elements that are computed at once: on a CPU those of one thread, which fit into its cache."""
_WORDS = 1 << 32


class Initial(Protocol):
    """Gives the normal distribution of a parameter's initial values."""

    def __call__(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return mean and standard deviation."""


@torch.no_grad()
def initialize(model: nn.Module, seed: int, initial: Initial, chosen: Callable[[str], bool] | None = None) -> None:
    """Fill this rank's part of every parameter with its initial values; nothing is communicated.

    `chosen`: tells by its name whether a parameter is filled; None: all are.
    """
    for name, parameter in model.named_parameters():
        if chosen is not None and not chosen(name):
            continue
        mean, deviation = initial(name, tuple(parameter.shape))
        own, offsets = own_part(parameter)
        if not deviation:
            own.fill_(mean)
        if not deviation or not own.numel():
            continue
        if not own.ndim:
            own, offsets = own.view(1), (0,)
        rows_RE = own.view(-1, own.shape[-1])
        row_R = _row_numbers(own, offsets, parameter.shape)
        key = _key(seed, name)
        step = max(1, _chunk(own.device) // max(1, own.shape[-1]))
        for first in range(0, len(row_R), step):
            values_RE = normal(key, row_R[first : first + step], offsets[-1], own.shape[-1])
            rows_RE[first : first + step] = values_RE.mul_(deviation).add_(mean)


def own_part(parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return this rank's part of a parameter, and where it begins in each dimension."""
    if isinstance(parameter, DTensor):
        return parameter.to_local(), local_offsets(parameter)
    return parameter, (0,) * parameter.ndim


def normal(key: tuple[int, int, int, int], row_R: Tensor, column: int, count: int) -> Tensor:
    """Return standard normal values [R, count] in float32, those of some rows and of `count` columns from one on.

    A row has 64 bits of its own, and each element 32 bits, from which the value follows by the inverse of the normal
    distribution.

    Args:
        key: 128 bits, those of the parameter.
        row_R: numbers of the rows, in int32.
        column: number of the first column.
        count: number of columns.
    """
    first_R = _mix(_mix(row_R ^ key[0]).add_(key[1]))
    second_R = _mix(_mix(row_R ^ key[2]).add_(key[3]))
    column_E = torch.arange(column, column + count, dtype=torch.int32, device=row_R.device)
    bits_RE = _mix(_mix(column_E ^ first_R.unsqueeze(1)).add_(second_R.unsqueeze(1)))
    # The 24 highest bits, as a number in (-1, 1) that float32 holds exactly.
    uniform_RE = bits_RE.bitwise_right_shift_(8).float().add_(0.5).mul_(2.0**-23)
    return uniform_RE.erfinv_().mul_(math.sqrt(2.0))


def _mix(x: Tensor) -> Tensor:
    """Return a tensor of int32 with its bits mixed, in place (the hash lowbias32 of Wellons, 2018)."""
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= 0x846CA68B - _WORDS
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def _row_numbers(own: Tensor, offsets: tuple[int, ...], shape: torch.Size) -> Tensor:
    """Return the numbers, in the undivided parameter, of the rows of this rank's part, in int32.

    A row is what all dimensions but the last one count.
    """
    number_R = torch.zeros(1, dtype=torch.int64, device=own.device)
    for dim in range(own.ndim - 1):
        own_S = torch.arange(offsets[dim], offsets[dim] + own.shape[dim], device=own.device)
        number_R = (number_R.unsqueeze(1) * shape[dim] + own_S).flatten()
    return number_R.to(torch.int32)


def _chunk(device: torch.device) -> int:
    return CUDA_CHUNK if device.type == "cuda" else CPU_CHUNK * torch.get_num_threads()


def _key(seed: int, name: str) -> tuple[int, int, int, int]:
    """Return 128 bits of a parameter as four numbers of 32 bits with sign."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    first, second, third, fourth = (int.from_bytes(digest[i : i + 4], "little", signed=True) for i in range(0, 16, 4))
    return first, second, third, fourth
