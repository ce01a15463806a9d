"""Faults injected by root on the node: signals to processes of pods, mounts, packet filters, daemons that end."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import Cluster, Profile
from tests.cluster.binaries import GoToolbox
from tests.cluster.cgroups import hierarchies
from tests.cluster.model import Request
from tests.cluster.node import HOLDER, Node
from tests.cluster.process import ProcessId, every_process
from tests.e2e.namespace import Body, Namespace, eventually
from tests.support.need import require

TRAINER = 65532
"""User and group of the built-in trainer's pods."""


@dataclass(frozen=True)
class NodeFaults:
    """Faults of the one node of a cluster that `tests.cluster` runs itself."""

    node: Node

    @classmethod
    def on(cls, cluster: Cluster) -> "NodeFaults":
        """Return the faults of a cluster's node; skip the test if `tests.cluster` does not run that node."""
        require(cluster.provider.name == "built", "a node of tests.cluster's own: its processes are to be killed")
        return cls(Node(Request(Profile.NODE, cluster.name), GoToolbox()))

    # --- processes -----------------------------------------------------------------------------------------------

    def launcher(self, pod: Body) -> int:
        """Return process 1 of a pod's first container, as the node numbers it."""
        [container] = pod["status"]["containerStatuses"]
        identity = container["containerID"].rpartition("/")[2]
        inside = [p.pid for p in every_process() if identity in _read(p.pid, "cgroup")]
        [first] = [pid for pid in inside if re.search(r"^NSpid:.*\t1$", _read(pid, "status"), re.MULTILINE)]
        return first

    def ranks(self, pod: Body) -> list[int]:
        """Return the training processes of a pod."""
        launcher = self.launcher(pod)
        return sorted(process.pid for process in every_process() if _parent(process.pid) == launcher)

    def shim(self, pod: Body) -> int:
        """Return the shim process of the container runtime that holds a pod's containers."""
        parent = _parent(self.launcher(pod))
        assert "containerd-shim" in _read(parent, "cmdline")
        return parent

    def signal(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; after SIGKILL, return once the process has ended."""
        process = ProcessId.of(pid)
        assert process is not None, f"process {pid} has ended already"
        process.signal(number)
        if number == signal.SIGKILL:
            eventually(f"process {pid} gone", lambda: not process.alive(), timeout=10, interval=0.01)

    def restart(self, daemon: str) -> None:
        """Kill a daemon of the node, and return once its successor is healthy."""
        with self.without(daemon):
            pass

    @contextmanager
    def without(self, daemon: str) -> Iterator[None]:
        """Kill a daemon of the node; its successor is healthy when the context ends."""
        process = self.node.supervisor().process(daemon)
        assert process is not None, f"{daemon} does not run"
        process.signal(signal.SIGKILL)
        eventually(f"{daemon} gone", lambda: not process.alive(), timeout=10, interval=0.01)
        try:
            yield
        finally:
            self.node.up()

    def throttle(self, pod: Body, share: float | None) -> None:
        """Limit a pod's container to a share of a processor; None removes the limit."""
        launcher = self.launcher(pod)
        period = 10_000  # microseconds: short, so that even a small piece of work is slowed down evenly
        quota = None if share is None else round(share * period)
        paths = {line.split(":", 2)[2].lstrip("/") for line in _read(launcher, "cgroup").splitlines()}
        groups = {root / path for root in hierarchies(_read(os.getpid(), "mountinfo")) for path in paths}
        for group in groups:
            if (group / "cpu.max").exists():  # version 2
                (group / "cpu.max").write_text(f"{'max' if quota is None else quota} {period}")
                return
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_period_us").write_text(str(period))
                (group / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))
                return
        raise AssertionError(f"no cgroup of a processor among {groups}")

    # --- network -------------------------------------------------------------------------------------------------

    def drop_packets(self, pod: Body) -> None:
        """Drop all packets from and to a pod, for as long as it exists."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = ["iptables", "-w", "-I", chain, "!", way, "lo", "-j", "DROP"]
            _run("nsenter", f"--target={self.launcher(pod)}", "--net", "--", *rule)

    # --- volumes and logs ----------------------------------------------------------------------------------------

    def volume(self, namespace: Namespace, name: str) -> "Volume":
        """Create a folder of the node that the trainer's user can write to."""
        return Volume(self, self.node.paths.state / "volumes" / f"{namespace.name}-{name}").create()

    @property
    def pod_logs(self) -> Path:
        """NAMESPACE_POD_UID/CONTAINER/RESTART.log, for each container."""
        return self.node.paths.state / "pod-logs"

    @property
    def holder(self) -> int:
        """Number of the process that holds the node's namespaces."""
        process = self.node.supervisor().process(HOLDER)
        assert process is not None
        return process.pid


@dataclass(frozen=True)
class Volume:
    """A folder of the node."""

    node_faults: NodeFaults
    path: Path
    """The path in the node's mount namespace."""

    @property
    def here(self) -> Path:
        """The path of the folder outside of the node's mount namespace."""
        return Path(f"/proc/{self.node_faults.holder}/root{self.path}")

    def create(self) -> "Volume":
        """Create the folder, empty and owned by the trainer's user."""
        self.remove()
        self.path.mkdir(parents=True)
        os.chown(self.path, TRAINER, TRAINER)
        return self

    def limit(self, size: str) -> None:
        """Mount a file system of a certain size on the folder."""
        options = f"size={size},uid={TRAINER},gid={TRAINER},mode=0755"
        self._in_node("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path))

    def fill(self) -> None:
        """Fill the remaining space."""
        with suppress(OSError), (self.here / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * (1 << 16))

    def free(self) -> None:
        """Free the space that `fill` took."""
        (self.here / "filler").unlink()

    def remove(self) -> None:
        """Remove the folder; what pods have still mounted goes with them."""
        if os.path.ismount(self.here):
            self._in_node("umount", "--lazy", str(self.path))
        shutil.rmtree(self.path, ignore_errors=True)

    def offer(self, namespace: Namespace, claim: str) -> None:
        """Make the folder a PersistentVolume that is reserved for one claim."""
        self.withdraw(namespace)
        body = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.path.name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(self.path)},
                "claimRef": {"kind": "PersistentVolumeClaim", "namespace": namespace.name, "name": claim},
            },
        }
        namespace.apply(body)

    def withdraw(self, namespace: Namespace, *, wait: bool = True) -> None:
        """Delete the PersistentVolume, which no later claim could bind, not even one of the same name."""
        namespace.kubectl("delete", "pv", self.path.name, "--ignore-not-found", f"--wait={str(wait).lower()}")

    def _in_node(self, *argv: str) -> None:
        _run("nsenter", f"--target={self.node_faults.holder}", "--mount", "--", *argv)


def _read(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(pid: int) -> int:
    """Return the parent of a process; 0 if the process has ended."""
    fields = _read(pid, "stat").rpartition(") ")[2].split()
    return int(fields[1]) if fields else 0


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
