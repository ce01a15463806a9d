"""Memory that a rank uses."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory(NamedTuple):
    """Bytes that one rank uses. The last three come from torch's allocator on a GPU, and are 0 without a GPU."""

    resident: int
    """Resident memory of the process on the host; pages shared by ranks count for each rank."""
    allocated: int = 0
    """Bytes held by tensors."""
    reserved: int = 0
    """Bytes held by the allocator."""
    peak: int = 0
    """Largest number of bytes that tensors have held."""


def measure(device: torch.device) -> Memory:
    """Return the memory that this process uses now."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    if device.type != "cuda":
        return Memory(resident)
    return Memory(
        resident,
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
    )
