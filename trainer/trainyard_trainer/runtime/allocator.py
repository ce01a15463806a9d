"""Settings of the C library's memory allocator."""

import ctypes

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = -1
KEPT_BLOCK = 32 << 20
"""Largest block that is kept for reuse: as large as the largest threshold that glibc sets by itself."""
RETURNED_BLOCK = 256 << 10
"""Smallest block that is returned to the system at once, if little memory is to be used."""


def set_memory_reuse(*, keep: bool) -> None:
    """Choose between speed and little memory, for this process and those that it forks.

    With `keep`, memory that a step has freed stays in the process for the next one. Otherwise the system takes the
    activations of each step back, and provides them again page by page, filled with zeros: a step of a small model on a
    CPU takes up to a quarter longer. But kept memory becomes fragmented, so that the peak is up to twice that of the
    tensors, and with sharded parameters up to five times; returned memory is within a tenth of it
    (`trainyard.sizing.memory_use` chooses). Other C libraries than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both are set, since setting one of them stops glibc from adapting the other.
        mallopt(_M_MMAP_THRESHOLD, KEPT_BLOCK if keep else RETURNED_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
