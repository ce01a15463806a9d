"""Processes that outlive the command that started them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cluster.model import ClusterError

MARK = "TRAINYARD_CLUSTER_STATE"
"""Environment variable of every process of a cluster: what finds those without a pid file."""


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class ProcessId:
    """The identity of one process; its number alone may be reused by the kernel."""

    pid: int
    start: int
    """Clock ticks since boot."""
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the process with this number; None if there is none, or only a zombie that holds no resources."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return cls.from_stat(stat)

    @classmethod
    def from_stat(cls, stat: str) -> ProcessId | None:
        """Parse /proc/PID/stat (proc_pid_stat(5)); the name in it may hold blanks and brackets."""
        pid, _, rest = stat.partition(" (")
        fields = rest.rpartition(") ")[2].split()
        # The first thread of a process that was killed may be a zombie while others still end, and hold its sockets.
        ended = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if ended else cls(int(pid), int(fields[19]), _boot())

    @classmethod
    def read(cls, file: Path) -> ProcessId | None:
        """Return the process that a pid file names; None if it has ended."""
        try:
            pid, start, boot = file.read_text().split()
            recorded = cls(int(pid), int(start), boot)
        except (FileNotFoundError, ValueError):
            return None  # not started, or killed while writing the file
        return recorded if recorded.alive() else None

    def write(self, file: Path) -> None:
        """Write a pid file."""
        file.write_text(f"{self.pid} {self.start} {self.boot}\n")

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return ProcessId.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal to this process or, if it has ended, to none."""
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.alive():  # from here on the handle keeps the number from meaning another one
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def spawn(argv: Sequence[str], log: Path, mark: Path) -> ProcessId:
    """Start a daemon in a session of its own, with its output in a log file."""
    program = require(argv[0])
    # Not subprocess.Popen, which warns about each child that outlives it. Proxy settings and the like
    # of the caller's environment must not reach the daemons.
    environment = {MARK: str(mark), "PATH": search_path(), "LANG": "C.UTF-8"}
    output = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
    pid = os.posix_spawn(program, list(argv), environment, file_actions=files, setsid=True)
    identity = ProcessId.of(pid)
    if identity is None:
        raise ClusterError(f"{argv[0]} ended at once: {tail(log)}")
    return identity


def require(program: str, remedy: str = "install it") -> str:
    """Return the path of an installed program; raise ClusterError with the remedy if there is none."""
    found = shutil.which(program, path=search_path())
    if found is None:
        raise ClusterError(f"{program} is not installed: {remedy}")
    return found


def search_path() -> str:
    """Return PATH with the folders of system programs, which an ordinary user's PATH may lack."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def stop(processes: Iterable[ProcessId], *, grace: float = 5.0) -> None:
    """End processes: ask first, then kill those still there after `grace` seconds."""
    remaining = list(processes)
    for number, timeout in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for process in remaining:
            process.signal(number)
        remaining = _wait(remaining, timeout)
        if not remaining:
            return
    raise ClusterError(f"processes {[p.pid for p in remaining]} survive SIGKILL: see `cat /proc/PID/stack`")


def _wait(processes: Sequence[ProcessId], timeout: float) -> list[ProcessId]:
    deadline = time.monotonic() + timeout
    while remaining := [process for process in processes if process.alive()]:
        if time.monotonic() > deadline:
            return remaining
        time.sleep(0.02)
    for process in processes:
        with suppress(ChildProcessError):  # started by an earlier command: init reaps it
            os.waitpid(process.pid, os.WNOHANG)
    return []


def every_process() -> Iterator[ProcessId]:
    """Yield all processes of the machine except this one and its ancestors."""
    own = ancestry()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) not in own:
            identity = ProcessId.of(int(folder.name))
            if identity is not None:
                yield identity


def ancestry() -> set[int]:
    """Return the process numbers of this process and of all its ancestors."""
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    return found


def network_of(process: ProcessId | int) -> int | None:
    """Return the network namespace of a process; None if it has ended or belongs to another user."""
    pid = process if isinstance(process, int) else process.pid
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def marked(state: Path) -> list[ProcessId]:
    """Return the processes of the cluster with this state folder, and their descendants outside of pods."""
    wanted = f"{MARK}={state}".encode()

    def has_mark(process: ProcessId) -> bool:
        try:
            return wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False  # ended meanwhile, or another user's

    return [process for process in every_process() if has_mark(process)]


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
