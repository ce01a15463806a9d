"""The cgroup that holds all pods of a cluster, in every hierarchy of cgroup version 1 or in version 2's."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.model import ClusterError
from tests.cluster.process import ProcessId, every_process


def hierarchies(mountinfo: str) -> list[Path]:
    """Return the mount points of all hierarchies, from /proc/PID/mountinfo (proc_pid_mountinfo(5))."""
    found = []
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if filesystem.split()[0] in {"cgroup", "cgroup2"}:
            found.append(Path(mount.split()[4]))
    return found


def _folders(name: str) -> list[Path]:
    return [root / name for root in hierarchies(Path("/proc/self/mountinfo").read_text())]


def create(name: str) -> None:
    """Create the cgroup of a cluster in each hierarchy; the kubelet creates those of pods below it."""
    for folder in _folders(name):
        folder.mkdir(exist_ok=True)


def processes(name: str) -> list[ProcessId]:
    """Return the processes in a cgroup and below it."""

    def inside(process: ProcessId) -> bool:
        try:
            lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any(line.split(":", 2)[2].startswith(f"/{name}/") for line in lines)

    return [process for process in every_process() if inside(process)]


def remove(name: str, *, timeout: float = 10.0) -> None:
    """Remove the cgroup of a cluster, once the kernel has released the processes that were in it."""
    deadline = time.monotonic() + timeout
    for top in filter(Path.exists, _folders(name)):
        folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise ClusterError(f"cannot remove the cgroup {folder}: {error}") from None
                    time.sleep(0.05)
