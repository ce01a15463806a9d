"""How a process ends: termination message, exit code, signals to stop. Free of torch, for the launcher."""

import fcntl
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher import STOP_SIGNALS, termination_message_path
from trainyard.protocol.log_tail import is_peer_loss
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.runtime.errors import BadSteps, ConfigError, ExportFailed, FinalCheckpointFailed
from trainyard_trainer.runtime.object_store import ObjectStoreError

PEER_LOST_PAUSE = 1.0
"""Seconds that a process which has lost a peer waits before it ends, so that the operator sees the cause first."""
STOP_SECONDS = 10.0
"""Time for the ranks to end when this pod is told to stop, unless the operator grants more."""
MAX_NCCL_MESSAGE = 1000
"""Characters of an error of NCCL that are kept."""
LAUNCHER_SECONDS = 2.0
"""Part of that time that is left to the launcher; also the time for ranks to end after another one has failed."""


def grace_seconds() -> float:
    """Return the seconds from a signal to stop until the launcher kills the ranks that are left."""
    return float(os.environ.get(constants.ENV_GRACE) or STOP_SECONDS) - LAUNCHER_SECONDS


def write_termination_message(message: TerminationMessage) -> None:
    """Write the pod's termination message, unless there is one that matters more.

    The first cause that a process reports stays; it replaces the report of a process that has only lost a peer.
    """
    path = termination_message_path()
    if launcher_protocol.ENV_TERMINATION_LOG not in os.environ and not path.exists():
        return  # run by hand
    try:
        # In place, not by rename: in a pod the file is a mount point. Other local ranks may write at the same time.
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            existing = TerminationMessage.decode(file.read())
            if existing is None or _outranks(message, existing):
                file.truncate(0)
                file.write(message.encode())
    except OSError as error:
        print(f"the termination message cannot be written to {path}: {error.strerror}", file=sys.stderr)


def _outranks(message: TerminationMessage, existing: TerminationMessage) -> bool:
    """Return whether a message is a cause, where the existing one is only a consequence."""
    is_stop = message.exception in {stop.name for stop in STOP_SIGNALS}
    return existing.peer_lost and not message.peer_lost and not is_stop


def exit_with_error(error: Exception, rank: int | None, step: int | None) -> NoReturn:
    """End this process because of an exception; only a fault of the code is printed with a traceback."""
    message = describe(error, rank, step)
    write_termination_message(message)
    process = "the launcher" if rank is None else f"rank {rank}"
    if isinstance(error, ConfigError):
        print(f"error: {error}", file=sys.stderr)
        exit_now(constants.EXIT_INVALID_CONFIG)
    if isinstance(error, FinalCheckpointFailed):
        print(f"error: {process}: {error}", file=sys.stderr)
        exit_now(constants.EXIT_FINAL_CHECKPOINT_FAILED)
    if isinstance(error, BadSteps):
        print(f"error: {process}: {error}", file=sys.stderr, flush=True)
        time.sleep(PEER_LOST_PAUSE if message.peer_lost else 0)
        exit_now(constants.EXIT_BAD_STEPS)
    # The message says all; a traceback through libraries would hide it.
    if isinstance(error, ObjectStoreError):
        print(f"error: {process}: {message.message}", file=sys.stderr)
        exit_now(1)
    if isinstance(error, ExportFailed):
        print(f"error: {process}: {error}", file=sys.stderr, flush=True)
        time.sleep(PEER_LOST_PAUSE if message.peer_lost else 0)
        exit_now(1)
    if message.peer_lost:
        print(f"{process} lost a peer: {message.message}", file=sys.stderr, flush=True)
        time.sleep(PEER_LOST_PAUSE)
        exit_now(1)
    print(f"{process} failed after step {step}:", file=sys.stderr)
    traceback.print_exception(error)
    exit_now(1)


def describe(error: Exception, rank: int | None, step: int | None) -> TerminationMessage:
    """Return the termination message of a process that an exception ends."""
    text = str(error).strip().partition("\n")[0]
    # NCCL says what has happened in the lines below the first.
    if type(error).__name__ == "DistBackendError":
        text = " ".join(str(error).split())[:MAX_NCCL_MESSAGE]
    # torch.OutOfMemoryError, which only a process with torch can raise.
    elif type(error).__name__ == "OutOfMemoryError":
        from trainyard_trainer.runtime import out_of_memory

        text = f"{text}; {out_of_memory.explain(rank)}"
    lost = is_peer_lost(error)
    if lost:
        # Gloo puts a location in its source before the message, and advice after it.
        text = re.sub(r"^\[[^]]*\] ", "", text).partition(" This is typically")[0]
    lost = lost or (isinstance(error, BadSteps | ExportFailed | FinalCheckpointFailed) and error.on_other_ranks)
    return TerminationMessage(rank=rank, exception=type(error).__name__, message=text, step=step, peer_lost=lost)


def is_peer_lost(error: Exception) -> bool:
    """Return whether an exception only means that another process has ended, or does not answer.

    Gloo raises a plain RuntimeError that names its transport, the store a DistStoreError or DistNetworkError
    (which can also mean that the port of rank 0 is in use), NCCL a DistBackendError, and after its watchdog has aborted
    the communicator any RuntimeError that says so.
    """
    from torch import distributed as dist

    text = str(error)
    if isinstance(error, dist.DistBackendError):
        return is_peer_loss(text) or "timeout" in text.lower()
    if isinstance(error, dist.DistError):
        return "failed to listen" not in text
    aborted = "communicator was aborted" in text
    return isinstance(error, RuntimeError) and ("gloo/transport" in text or aborted)


def exit_now(code: int) -> NoReturn:
    """End the process at once, without cleanup: threads of gloo and NCCL may hang when groups are destroyed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def block_stop_signals() -> None:
    """Keep SIGTERM and SIGINT pending for `handle_stop_signals`, in this process and those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def handle_stop_signals(act: Callable[[signal.Signals], None]) -> None:
    """Call a function, in a thread of its own, when this process receives SIGTERM or SIGINT.

    A Python signal handler runs only when the main thread is back in the interpreter, but it may be waiting in C++
    for another rank. So the signals are blocked here, before other threads start and inherit the mask, and a thread
    waits for them.
    """
    block_stop_signals()

    def wait() -> None:
        act(signal.Signals(signal.sigwait(STOP_SIGNALS)))

    threading.Thread(target=wait, name="stop", daemon=True).start()
