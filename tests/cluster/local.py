"""The life of a cluster that this tool runs itself: created, repaired, removed."""

from __future__ import annotations

import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

from tests.cluster.control_plane import (
    ADMINISTRATOR,
    Ports,
    Probe,
    control_plane,
    free_ports,
    write_credentials,
)
from tests.cluster.daemons import Daemon, Supervisor
from tests.cluster.model import ClusterError, Request, Toolbox
from tests.cluster.paths import locked, paths_of
from tests.cluster.process import ProcessId, marked, stop
from tests.cluster.progress import say, step


class LocalCluster(ABC):
    """Daemons, and the state folder that they share."""

    tools: Sequence[str]
    """The programs it needs from the toolbox."""

    def __init__(self, request: Request, toolbox: Toolbox) -> None:
        """Touches nothing yet."""
        if sys.platform != "linux":
            raise ClusterError("only Linux runs a cluster here: install kind or set TRAINYARD_TEST_KUBECONFIG")
        self.toolbox = toolbox
        self.paths = paths_of(request)
        self.lock = self.paths.state.with_suffix(".lock")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Puts a command into its network."""
        return ()

    def supervisor(self, prefix: Sequence[str] = ()) -> Supervisor:
        """Runs its daemons."""
        return Supervisor(self.paths, prefix)

    @property
    def probe(self) -> Probe:
        """Asks its servers."""
        return Probe(self.toolbox.path("kubectl"), self.paths.kubeconfig(), self.prefix)

    def up(self) -> None:
        """Make it healthy, with as little change as that takes."""
        with locked(self.lock):
            self.toolbox.prepare(self.tools)
            if self._recorded() and (self._healthy() or self._repaired()):
                return
            self._remove()
            self.paths.state.mkdir(parents=True)
            self._create()
            self._record()
            self._start()

    def down(self) -> None:
        """Leave nothing of it behind but its logs."""
        with locked(self.lock, remove=True):
            self._remove()

    def status(self) -> dict[str, str]:
        """Each daemon with its process number and health."""
        return {daemon.name: self._state(daemon) for daemon in self._daemons()} if self._recorded() else {}

    def _state(self, daemon: Daemon) -> str:
        process = self.supervisor().process(daemon.name)
        if process is None:
            return "not running"
        return f"{'healthy' if daemon.healthy() else 'not healthy'}, process {process.pid}"

    def _healthy(self) -> bool:
        wanted = self._daemons()
        alive = all(self.supervisor().process(daemon.name) for daemon in wanted)
        return alive and all(daemon.healthy() for daemon in wanted)

    def _repaired(self) -> bool:
        try:
            with step("repairing the cluster", slow=True):
                self._start()
        except ClusterError as error:
            say(f"starting anew: {str(error).partition('. ')[0]}")
            return False
        return True

    def _remove(self) -> None:
        strays = self._strays()
        if not strays and not self.paths.state.exists():
            return
        with step("removing the cluster"):
            self.paths.record.unlink(missing_ok=True)  # from now on it is not to be repaired
            self.supervisor().stop()
            stop(strays, grace=0)
            self._clean()
            self.paths.save_logs()
            for folder in (self.paths.run, self.paths.state):
                shutil.rmtree(folder, ignore_errors=True)

    def _strays(self) -> list[ProcessId]:
        """Its processes, those included that no pid file names."""
        return marked(self.paths.state)

    def _clean(self) -> None:
        """Remove what outlives its daemons."""
        return None

    def _recorded(self) -> bool:
        try:
            record = json.loads(self.paths.record.read_text())
        except (FileNotFoundError, ValueError):
            return False  # none, or killed while creating it
        return bool(record == self._make())

    def _record(self) -> None:
        self.paths.record.write_text(json.dumps(self._make()))

    def _make(self) -> dict[str, str]:
        configured = " ".join(self.toolbox.kubernetes.apiserver_arguments())
        return {"programs": self.toolbox.version, "profile": type(self).__name__, "configured": configured}

    @abstractmethod
    def _create(self) -> None:
        """Write the files of a new cluster into its empty state folder."""

    @abstractmethod
    def _daemons(self) -> Sequence[Daemon]:
        """All of its daemons."""

    @abstractmethod
    def _start(self) -> None:
        """Start those that do not run, and wait until all are healthy."""


class ControlPlane(LocalCluster):
    """etcd and kube-apiserver on free ports of the loopback interface; needs no privilege."""

    tools = ("etcd", "kube-apiserver", "kubectl")

    def _create(self) -> None:
        ports = free_ports()
        (self.paths.state / "ports").write_text(f"{ports.apiserver} {ports.etcd} {ports.etcd_peers}\n")
        write_credentials(self.paths, ports.apiserver, {"admin": ADMINISTRATOR}, addresses=[])

    def _daemons(self) -> Sequence[Daemon]:
        ports = Ports(*map(int, (self.paths.state / "ports").read_text().split()))
        extra = [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # a loopback address is no valid endpoint
            "--disable-admission-plugins=ServiceAccount",  # no controller creates the accounts of pods
        ]
        return control_plane(self.toolbox, self.paths, ports, self.probe, extra)

    def _start(self) -> None:
        self.supervisor().ensure(self._daemons())
