"""How a process ends: its last word, its exit code, and no time lost. Free of torch, since the launcher starts here."""

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
from trainyard.protocol.launcher import STOP_SIGNALS, word_file
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.runtime.errors import BadSteps, ConfigError

PEER_LOST_PAUSE = 1.0
"""Seconds that a process which only suffers from a peer stays, so that whoever watches sees the cause first."""


def write_termination_message(word: TerminationMessage) -> None:
    """Write the pod's termination message, unless a better one is there already.

    The first process to know a cause wins; one that only lost its peers gives way to it.
    """
    path = word_file()
    if launcher_protocol.ENV_TERMINATION_LOG not in os.environ and not path.exists():
        return  # run by hand
    try:
        # In place and never by rename: in a pod the file is a mount point. The lock is for the other local ranks.
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            there = TerminationMessage.decode(file.read())
            if there is None or _outranks(word, there):
                file.truncate(0)
                file.write(word.encode())
    except OSError as error:
        print(f"the termination message cannot be written to {path}: {error.strerror}", file=sys.stderr)


def _outranks(word: TerminationMessage, there: TerminationMessage) -> bool:
    return there.peer_lost and not word.peer_lost and word.exception not in {s.name for s in STOP_SIGNALS}


def exit_with_error(error: Exception, rank: int | None, step: int | None) -> NoReturn:
    """End this process because of an exception: with a traceback if it is a fault, without one if it is not."""
    word = describe(error, rank, step)
    write_termination_message(word)
    who = "the launcher" if rank is None else f"rank {rank}"
    if isinstance(error, ConfigError):
        print(f"error: {error}", file=sys.stderr)
        exit_now(constants.EXIT_INVALID_CONFIG)
    if isinstance(error, BadSteps):
        print(f"error: {who}: {error}", file=sys.stderr, flush=True)
        time.sleep(PEER_LOST_PAUSE if word.peer_lost else 0)
        exit_now(constants.EXIT_BAD_STEPS)
    if word.peer_lost:
        print(f"{who} lost a peer: {word.message}", file=sys.stderr, flush=True)
        time.sleep(PEER_LOST_PAUSE)
        exit_now(1)
    print(f"{who} failed after step {step}:", file=sys.stderr)
    traceback.print_exception(error)
    exit_now(1)


def describe(error: Exception, rank: int | None, step: int | None) -> TerminationMessage:
    """The last word of a process that an exception ends."""
    text = str(error).strip().partition("\n")[0]
    if lost := is_peer_lost(error):
        # Gloo puts the place in its source before, and advice after.
        text = re.sub(r"^\[[^]]*\] ", "", text).partition(" This is typically")[0]
    lost = lost or (isinstance(error, BadSteps) and error.elsewhere)
    return TerminationMessage(rank=rank, exception=type(error).__name__, message=text, step=step, peer_lost=lost)


def is_peer_lost(error: Exception) -> bool:
    """Whether an exception says no more than that another process is gone, or does not answer.

    Gloo raises a plain RuntimeError that names its transport, the store a DistStoreError or DistNetworkError
    (which can also mean that rank 0 finds its own port taken), NCCL a DistBackendError.
    """
    from torch import distributed as dist

    text = str(error)
    if isinstance(error, dist.DistBackendError):
        return "remote process exited" in text or "timeout" in text.lower()
    if isinstance(error, dist.DistError):
        return "failed to listen" not in text
    return isinstance(error, RuntimeError) and "gloo/transport" in text


def exit_now(code: int) -> NoReturn:
    """End without tearing anything down: threads of gloo and NCCL may hang or abort when their groups go away."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def block_stop_signals() -> None:
    """Let SIGTERM and SIGINT wait until `handle_stop_signals` takes them, in this process and those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def pending_stop_signal() -> signal.Signals | None:
    """A signal that has come while they were held, if one has."""
    return signal.Signals(signal.sigwait(STOP_SIGNALS)) if signal.sigpending() & set(STOP_SIGNALS) else None


def handle_stop_signals(act: Callable[[signal.Signals], None]) -> None:
    """Call a function in a thread of its own when this process is told to stop (SIGTERM, SIGINT).

    A signal handler of Python's would run only once the main thread is back in the interpreter, which may be
    waiting in C++ for another rank. So the signals are blocked here, before other threads start and inherit the
    mask, and a thread waits for them.
    """
    block_stop_signals()

    def wait() -> None:
        act(signal.Signals(signal.sigwait(STOP_SIGNALS)))

    threading.Thread(target=wait, name="stop", daemon=True).start()
