"""Finds the failure in the end of a program's log: the exception, its rank, or the signal that killed a rank.

It understands uncaught exceptions of Python, with and without the rank that torch puts before each line, the summary
that torchrun prints at its end, the watchdog of NCCL, uncaught exceptions of C++, and log lines in JSON. The work is
linear in the length of the text, and bounded.

Mounted into images of users together with `launcher.py`: standard library of Python 3.8 only.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MAX_CHARACTERS = 65_536
"""Length of the end of a log that is looked at, in characters."""
_MAX_LINE = 2000
"""Characters of a line that are looked at."""
_MAX_MESSAGE = 1000
"""Longest message that is returned, in characters."""
_LAST_LINES = 40
"""Lines at the end of a log in which the exception that has ended the program is expected. An earlier one was caught
and logged: the program has continued. torchrun's summary, which names the rank, makes up for any distance."""

_COLORS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RANK = re.compile(r"\[(rank|default)(\d{1,9})\]: ?")
"""torch's prefix of each line of an exception, and torchrun's prefix (--tee) with the local rank."""
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:: ?(.*))?$")
_NAMED_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*(\w*(?:Error|Exception|Interrupt|ExceptionGroup))(?:: (.*))?$")
"""An exception without its traceback, whose first lines may be missing: recognized by the usual names only."""
_CPP_EXCEPTION = re.compile(r"terminate called after throwing an instance of '(?:\w+::)*(\w+)'")
_CPP_MESSAGE = "  what():  "
_WATCHDOG = re.compile(
    r"Watchdog caught|watchdog thread terminated|communicator was aborted"
    r"|Terminating the process after attempting to dump debug info",
    re.IGNORECASE,
)
_LAST_ERROR = "Last error:"
"""Line of an error of NCCL before the one that says what has happened, for example that a connection is closed."""
_LINES_OF_ERROR = 4
"""Lines from the first line of an error of NCCL to `_LAST_ERROR`."""
_WATCHDOG_RANK = re.compile(r"\bRank (\d{1,9})\]")
_FATAL = "Fatal Python error: "
_STACKS = ("Thread 0x", "Current thread 0x", "Extension modules:")
"""Lines of the stacks of threads, besides those that begin with a space."""
_WRAPPERS = frozenset({"ChildFailedError", "CalledProcessError"})
"""Exceptions of torchrun and other launchers, which only say that a process has failed."""

_SUMMARY = "Root Cause (first observed failure):"
_SUMMARY_FIELD = re.compile(r" +(rank|exitcode) +: (-?\d{1,9}) \(")

_NOISE = re.compile(
    r"[-=*#~_\s]*$"  # a rule
    r"|[WI]\d{4} |\[[WI]\d{4} "  # warnings and notes of torch
    r"|nanobind: |See https://nanobind"  # objects that C++ has not freed at the exit
    r"|.*resource_tracker: "
)
"""Lines that follow an error and say nothing about it."""

_PEER_LOSS = re.compile(
    r"gloo/transport"
    r"|connection (?:was )?closed by (?:remote )?peer|failed to recv, got 0 bytes|recvValue failed"
    r"|(?:gloo|nccl|c10d|TCPStore).{0,400}"
    r"(?:connection (?:was )?reset by (?:remote )?peer|connection timed out|no route to host|broken pipe)"
    r"|remote process exited or there was a network error|ncclRemoteError"
    r"|communicator (?:was|has been) aborted|collective operation timeout|due to collective timeout or exception"
    r"|NET/IB ?: Got completion from peer"
    r"|DistStoreError|DistNetworkError|Rendezvous(?:Connection|Timeout|Closed)Error"
    r"|client socket has (?:timed out|failed)|wait timeout after|ranks arrived within",
    re.IGNORECASE,
)
_OWN_FAULT = re.compile(
    r"failed to listen|EADDRINUSE|address already in use|out of memory|invalid usage", re.IGNORECASE
)
"""Failures of the process itself for which torch raises the same exceptions."""


@dataclass(frozen=True)
class LogFailure:
    """What the end of a log says about a failure."""

    message: str = ""
    """Text of the exception, or the last line that says something; empty if there is none."""
    exception: str | None = None
    """Name of the exception's class, or of the signal that killed a rank; None if the log names neither."""
    rank: int | None = None
    """Global rank of the process that failed."""
    peer_lost: bool = False
    """Whether the failure is only an effect: the process has lost the connection to another one."""


def read_end(log: Path) -> str:
    """Return the end of a log file, as much of it as is looked at.

    Raises:
        OSError: the file cannot be read.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_CHARACTERS))
        return file.read(MAX_CHARACTERS).decode("utf-8", "replace")


def is_peer_loss(text: str) -> bool:
    """Return whether the text of an error only means that another process has ended, or does not answer."""
    # An error of NCCL has several lines.
    text = " ".join(text[:_MAX_LINE].split())
    return _PEER_LOSS.search(text) is not None and _OWN_FAULT.search(text) is None


def find_failure(text: str) -> LogFailure:
    """Return the failure that the end of a log describes."""
    full_lines = _without_stacks(_COLORS.sub("", line).rstrip() for line in text[-MAX_CHARACTERS:].splitlines())
    lines = [line[:_MAX_LINE] for line in _join_last_errors(full_lines)]
    root = _root_cause(lines)
    found = list(_exceptions(lines if root else lines[-_LAST_LINES:]))
    named = [failure for failure in found if failure.exception not in _WRAPPERS]
    found = named if root else named or found
    causes = [failure for failure in found if not failure.peer_lost]
    # torchrun names the rank that failed first.
    if root is not None:
        return _failure_of_root(root, found, causes)
    # The last uncaught exception ends a program. Those that only report a lost peer are its effects on other ranks.
    if found:
        return (causes or found)[-1]
    return _last_line(full_lines)


def _without_stacks(lines: Iterable[str]) -> list[str]:
    """Return lines without the stacks of all threads that Python prints when a signal ends it (faulthandler)."""
    kept, in_stacks = [], False
    for line in lines:
        bare = _RANK.sub("", line)
        if bare.startswith(_FATAL):
            in_stacks = True
        elif in_stacks and (not bare or bare[0].isspace() or bare.startswith(_STACKS)):
            continue
        else:
            in_stacks = False
        kept.append(line)
    return kept


def _join_last_errors(lines: list[str]) -> list[str]:
    """Return lines in which the first line of each error of NCCL ends with what its last line says."""
    joined = list(lines)
    for index in range(1, len(lines) - 1):
        if _RANK.sub("", lines[index]) == _LAST_ERROR:
            first = range(index - 1, max(-1, index - _LINES_OF_ERROR), -1)
            start = next((n for n in first if "NCCL error" in lines[n]), None)
            if start is not None:
                joined[start] = f"{joined[start][: _MAX_LINE // 2]} {_RANK.sub('', lines[index + 1])}"
                # The lines in between, "ncclSystemError: ..." for example, are no exceptions of their own.
                joined[start + 1 : index + 2] = [""] * (index + 1 - start)
    return joined


def excerpt(text: str, max_bytes: int) -> str:
    """Return the end of a log, at most `max_bytes` bytes of UTF-8, in which `find_failure` finds the same failure."""
    text = text[-MAX_CHARACTERS:].encode("utf-8", "replace").decode()
    tail = _last_bytes(text, max_bytes)
    failure = find_failure(text)
    if tail == text or failure.exception is None or find_failure(tail) == failure:
        return tail
    # The exception stands further up than the end reaches: repeat it.
    prefix = "" if failure.rank is None else f"[rank{failure.rank}]: "
    head = f"{prefix}{_TRACEBACK}\n{prefix}{failure.exception}: {failure.message}\n"
    head = head.encode()[: max_bytes // 2].decode("utf-8", "ignore")
    return head + "\n" + _last_bytes(text, max_bytes - len(head.encode()) - 1).partition("\n")[2]


def _last_bytes(text: str, size: int) -> str:
    data = text.encode()
    return text if len(data) <= size else data[-size:].decode("utf-8", "ignore")


# --- exceptions -----------------------------------------------------------------------------------------------


def _exceptions(lines: Iterable[str]) -> Iterator[LogFailure]:
    """Yield the uncaught exceptions in a log, in its order. The lines of several ranks may be interleaved."""
    parsers: dict[int | None, _Parser] = {}
    for line in lines:
        rank = None
        while (prefix := _RANK.match(line)) is not None:
            rank = int(prefix[2]) if prefix[1] == "rank" else rank
            line = line[prefix.end() :]  # noqa: PLW2901 (the line without its prefix)
        failure = parsers.setdefault(rank, _Parser(rank)).read(line) if len(parsers) < _MAX_LINE else None
        if failure is not None:
            yield failure


class _Parser:
    """Follows the lines of one rank."""

    def __init__(self, rank: int | None) -> None:
        self._rank = rank
        self._in_traceback = False
        self._ignored = False
        """Whether the traceback belongs to an exception that Python has ignored."""
        self._cpp: str | None = None
        """Class of a C++ exception whose text is expected in the next line."""

    def read(self, line: str) -> LogFailure | None:
        """Return the failure that a line completes; None if it does not."""
        # The text of an exception in C++.
        if self._cpp is not None and line.startswith(_CPP_MESSAGE):
            name, self._cpp = self._cpp, None
            return self._failure(name, line[len(_CPP_MESSAGE) :])
        if (thrown := _CPP_EXCEPTION.match(line)) is not None:
            self._cpp = thrown[1]
        # A traceback begins, continues, or ends with its exception.
        elif line.startswith(_TRACEBACK):
            self._in_traceback = True
        elif self._in_traceback and (not line or line[0].isspace()):
            pass
        elif self._in_traceback:
            self._in_traceback, ignored, self._ignored = False, self._ignored, False
            match = _EXCEPTION.match(line)
            return self._failure(match[1], match[2]) if match and not ignored else None
        elif line.startswith("Exception ignored in"):
            self._ignored = True
        # NCCL's watchdog ends the process without an exception in Python.
        elif _WATCHDOG.search(line) is not None:
            return self._failure("SIGABRT", line.rpartition("] ")[2])
        elif (named := _NAMED_EXCEPTION.match(line)) is not None:
            return self._failure(named[1], named[2])
        return None

    def _failure(self, name: str, message: str | None) -> LogFailure:
        message = (message or "").strip()
        watchdog = _WATCHDOG_RANK.search(message)
        rank = int(watchdog[1]) if self._rank is None and watchdog else self._rank
        message = message.rpartition("watchdog thread terminated with exception: ")[2]
        return LogFailure(message[:_MAX_MESSAGE], name, rank, peer_lost=is_peer_loss(f"{name}: {message}"))


# --- torchrun -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Root:
    """The rank that failed first, as torchrun's summary has it."""

    rank: int
    exit_code: int
    """Exit code; negative: the number of the signal that killed it."""
    failure: LogFailure | None = None
    """Its exception, if the program records it (torch.distributed.elastic.multiprocessing.errors.record)."""


def _root_cause(lines: list[str]) -> _Root | None:
    """Return what the last summary of torchrun says; None if there is none."""
    starts = [index for index, line in enumerate(lines) if line == _SUMMARY]
    if not starts:
        return None
    fields: dict[str, int] = {}
    recorded, failure = False, None
    for line in lines[starts[-1] + 1 :]:
        match = _SUMMARY_FIELD.match(line)
        if match is not None:
            fields.setdefault(match[1], int(match[2]))
        elif line.endswith(_TRACEBACK):
            recorded = True
        # A recorded traceback is indented by two spaces, so its last line is, too.
        elif recorded and line.startswith("  ") and line[2:3].strip() and (named := _EXCEPTION.match(line[2:])):
            failure = _Parser(fields.get("rank"))._failure(named[1], named[2])
    if "rank" not in fields or "exitcode" not in fields:
        return None
    return _Root(fields["rank"], fields["exitcode"], failure)


def _failure_of_root(root: _Root, found: list[LogFailure], causes: list[LogFailure]) -> LogFailure:
    """Return the failure of the rank that torchrun names, or of another one if that has only lost a peer."""
    own = [failure for failure in causes if failure.rank == root.rank]
    if own:
        return own[-1]
    if root.failure is not None and not root.failure.peer_lost:
        return root.failure
    # Killed by a signal, other than the one by which torchrun itself ends the ranks that are left.
    if root.exit_code < 0 and -root.exit_code not in (signal.SIGTERM, signal.SIGABRT):
        name = _signal_name(-root.exit_code)
        return LogFailure(f"rank {root.rank} was killed by {name}", name, root.rank)
    # An exception without a rank, as of a program without a process group, or the one of another rank.
    if causes:
        return causes[-1] if causes[-1].rank is not None else replace(causes[-1], rank=root.rank)
    effects = [failure for failure in found if failure.rank == root.rank]
    if root.failure is not None or effects:
        return root.failure or effects[-1]
    if root.exit_code < 0:
        name = _signal_name(-root.exit_code)
        return LogFailure(f"rank {root.rank} was killed by {name}", name, root.rank)
    message = f"rank {root.rank} failed with exit code {root.exit_code}; the log of the pod has more above torchrun's "
    return LogFailure(message + "summary", rank=root.rank)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- other endings --------------------------------------------------------------------------------------------


def _last_line(lines: list[str]) -> LogFailure:
    """Return the last line that says something; of a JSON object its message, or the exception that it holds."""
    line = next((line for line in reversed(lines) if not _NOISE.match(line)), "").strip()
    try:
        entry = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return LogFailure(line[:_MAX_MESSAGE])
    for value in entry.values():
        if isinstance(value, str) and _TRACEBACK in value and (found := list(_exceptions(value.splitlines()))):
            return found[-1]
    message = entry.get("message")
    return LogFailure((message if isinstance(message, str) else line)[:_MAX_MESSAGE])
