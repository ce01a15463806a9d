"""How the C library gives memory back to the system."""

import ctypes

# <malloc.h> of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = -1
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Keep what a step has freed for the next one, in this process and those that it forks.

    Without this, glibc returns the activations of each step to the system, and the next step gets them back page by
    page, filled with zeros, which is a few percent of the time of a small model on a CPU. What a process needs at its
    peak stays the same. Other C libraries than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Only both together: setting one of them also stops glibc from adapting the other.
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
