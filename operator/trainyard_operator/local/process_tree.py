"""Process trees: a process with all its descendants, on Linux and macOS.

A launcher starts its ranks in sessions of their own, and they survive it when it is killed. So a tree is identified by
an environment variable that every process in it inherits, and not by process group or parent.
"""

import contextlib
import ctypes
import signal
import sys
import time

import psutil

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded now: after a fork only calls are safe


def die_with_parent() -> None:
    """Ask the kernel to send SIGTERM when the parent dies (Linux only); to be called between fork and exec."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def process_tree(variable: str, value: str) -> list[psutil.Process]:
    """Return the processes of this user whose environment has `variable=value`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_process_tree(variable: str, value: str) -> None:
    """Kill every process of a tree, repeatedly, since one may fork meanwhile, until none is left."""
    while members := process_tree(variable, value):
        for process in members:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Not psutil.wait_procs: it would reap children of this process, whose exit codes asyncio awaits.
        time.sleep(0.02)
