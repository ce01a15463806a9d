"""Starts the daemons that are not running and waits until they are healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.cluster.model import ClusterError
from tests.cluster.paths import Paths
from tests.cluster.process import ProcessId, spawn, stop, tail
from tests.cluster.progress import step

Check = Callable[[], bool]


@dataclass(frozen=True)
class Daemon:
    """A long-running program of the cluster."""

    name: str
    argv: Sequence[str]
    healthy: Check
    timeout: float = 60.0
    """Seconds until it has to be healthy."""


@dataclass(frozen=True)
class Supervisor:
    """Runs the daemons of one cluster."""

    paths: Paths
    prefix: Sequence[str] = ()
    """Puts a daemon into the cluster's network."""

    def process(self, name: str) -> ProcessId | None:
        """Return the process of a daemon; None if it does not run."""
        return ProcessId.read(self.paths.pids / name)

    def running(self) -> dict[str, ProcessId | None]:
        """Return every daemon that was ever started, with its process if it still runs."""
        if not self.paths.pids.is_dir():
            return {}
        return {file.name: self.process(file.name) for file in sorted(self.paths.pids.iterdir())}

    def ensure(self, daemons: Sequence[Daemon]) -> None:
        """Start the daemons that do not run, all at once, then wait until each is healthy."""
        for folder in (self.paths.pids, self.paths.log):
            folder.mkdir(parents=True, exist_ok=True)
        with step(f"{', '.join(daemon.name for daemon in daemons)} healthy"):
            for daemon in daemons:
                if self.process(daemon.name) is None:
                    log = self.paths.log / f"{daemon.name}.log"
                    process = spawn([*self.prefix, *daemon.argv], log, self.paths.state)
                    process.write(self.paths.pids / daemon.name)
            for daemon in daemons:
                self._wait(daemon)

    def _wait(self, daemon: Daemon) -> None:
        deadline = time.monotonic() + daemon.timeout
        while not daemon.healthy():
            if self.process(daemon.name) is None:
                raise ClusterError(f"{daemon.name} ended. {self._last_words(daemon.name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{daemon.name} is not healthy after {daemon.timeout:g} s. {self._last_words(daemon.name)}"
                )
            time.sleep(0.1)

    def _last_words(self, name: str) -> str:
        log = self.paths.log / f"{name}.log"
        return f"The end of {log}:\n{tail(log)}"

    def stop(self) -> None:
        """Stop every daemon."""
        # Not for long: all they could save is about to be deleted.
        stop([process for process in self.running().values() if process is not None], grace=1.0)
