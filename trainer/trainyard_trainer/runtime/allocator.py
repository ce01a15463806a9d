"""How the C library returns freed memory to the system."""

import ctypes

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = -1
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Keep freed memory for the next step, in this process and those that it forks.

    By default, glibc returns the activations of each step to the system, and the next step gets them back page by page,
    filled with zeros: up to half of the CPU time of a small model. The price is memory: blocks that are kept are
    divided for smaller ones and leave gaps, so that a process holds more than the sum of its tensors. Other C libraries
    than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both are set, since setting one of them stops glibc from adapting the other.
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
