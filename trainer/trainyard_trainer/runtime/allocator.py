"""Settings of the C library's memory allocator."""

import ctypes

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = -1
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Keep memory that a step has freed for the next step, in this process and those that it forks.

    Without this, glibc returns the activations of each step to the system, and the next step gets them back page by
    page, filled with zeros, which is a few percent of the time of a small model on a CPU. Memory that is kept becomes
    fragmented, so the peak is higher than with glibc's defaults. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Both are set, since setting one of them stops glibc from adapting the other.
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
