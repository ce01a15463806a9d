"""How much memory a rank uses."""

import os
from pathlib import Path
from typing import NamedTuple

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Memory(NamedTuple):
    """Bytes that one rank uses. The last three are of torch's allocator on a GPU, and 0 without one."""

    resident: int
    """On the host; pages that ranks share count for each of them."""
    allocated: int = 0
    """Held by tensors."""
    reserved: int = 0
    """Held by the allocator."""
    peak: int = 0
    """The most that tensors have ever held."""


def measure(device: torch.device) -> Memory:
    """What this process uses now."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    if device.type != "cuda":
        return Memory(resident)
    return Memory(
        resident,
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
    )
