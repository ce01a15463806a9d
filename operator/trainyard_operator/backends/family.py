"""A process and all that it has started, on Linux and macOS.

A launcher starts its workers in sessions of their own, and when it is killed they stay behind. So a family is
known by a variable that every member has inherited, not by process group or parent.
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
    """Between fork and exec: ask the kernel for SIGTERM when the parent dies, however it dies (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def family(mark: str, value: str) -> list[psutil.Process]:
    """Processes of this user whose environment holds `mark=value`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(mark) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_family(mark: str, value: str) -> None:
    """Kill every member, until none is left: one may be starting another meanwhile."""
    while members := family(mark, value):
        for process in members:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)  # not psutil.wait_procs: it would reap children of ours, whose exit codes asyncio awaits
