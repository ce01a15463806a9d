"""Where a cluster keeps its files, and the lock that keeps two commands from working on one cluster."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.model import ClusterError, Profile, Request
from tests.cluster.progress import say

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK_TIMEOUT = 1800.0
"""Seconds; the command that holds the lock may be compiling Kubernetes."""


@dataclass(frozen=True)
class Paths:
    """The folders of one cluster."""

    state: Path
    run: Path
    """For sockets, whose paths may have only 107 bytes."""
    archived_logs: Path

    @property
    def log(self) -> Path:
        """One file per daemon."""
        return self.state / "log"

    @property
    def pids(self) -> Path:
        """One file per daemon."""
        return self.state / "pid"

    @property
    def pki(self) -> Path:
        """Keys, certificates."""
        return self.state / "pki"

    @property
    def record(self) -> Path:
        """What the cluster was made of; written last of all before its daemons start."""
        return self.state / "cluster.json"

    def kubeconfig(self, user: str = "admin") -> Path:
        """Return the path of one user's credentials."""
        return self.state / f"{user}.kubeconfig"

    def save_logs(self) -> None:
        """Keep the logs of a cluster that is about to be removed."""
        if self.log.is_dir():
            shutil.rmtree(self.archived_logs, ignore_errors=True)
            shutil.copytree(self.log, self.archived_logs)


def paths_of(request: Request) -> Paths:
    """Return the folders of a cluster that this tool runs itself."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,19}", request.name):
        raise ClusterError(f"cluster name {request.name!r}: use 1 to 20 lower-case letters, digits and dashes")
    override = os.environ.get("TRAINYARD_CLUSTER_DIR")
    if request.profile is Profile.CONTROL_PLANE:
        root = Path(override) / "control-plane" if override else user_folder("STATE") / "control-plane"
        run = root / request.name / "run"
    else:
        root = Path(override or "/var/lib/trainyard-cluster")
        run = Path("/run/trainyard-cluster") / request.name
    logs = REPOSITORY / "build" / "cluster-logs" / request.name
    return Paths((root / request.name).absolute(), run.absolute(), logs)


def user_folder(kind: str) -> Path:
    """Return Trainyard's folder for this user's STATE or CACHE (XDG base directory specification)."""
    default = {"STATE": ".local/state", "CACHE": ".cache"}[kind]
    return Path(os.environ.get(f"XDG_{kind}_HOME") or Path.home() / default) / "trainyard"


@contextmanager
def locked(file: Path, *, remove: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a file, which the kernel releases however this process ends.

    With `remove` the file is gone afterwards.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _lock(file)
    try:
        yield
    finally:
        if remove:
            file.unlink(missing_ok=True)
        os.close(handle)


def _lock(file: Path) -> int:
    deadline = time.monotonic() + LOCK_TIMEOUT
    announced = False
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file: then this is a lock on nothing.
            with suppress(FileNotFoundError):
                if file.stat().st_ino == os.fstat(handle).st_ino:
                    return handle
        except BlockingIOError:
            if not announced:
                say(f"waiting for another command that holds {file}")
                announced = True
            if time.monotonic() > deadline:
                os.close(handle)
                raise ClusterError(f"another command still holds {file}: end it, then retry") from None
            time.sleep(0.2)
        os.close(handle)
