"""A whole cluster with one node, in a network and a mount namespace of its own.

A process holds both namespaces. Every daemon joins it, so the host's interfaces, packet filters, ports
and mounts stay as they are, and once the last process has ended the kernel removes everything by itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path

from tests.cluster import cgroups, node_config
from tests.cluster.control_plane import Ports, control_plane, write_credentials
from tests.cluster.daemons import Check, Daemon
from tests.cluster.images import busybox
from tests.cluster.images.containerd import Containerd
from tests.cluster.local import LocalCluster
from tests.cluster.model import ClusterError, Request, Toolbox
from tests.cluster.node_config import NODE, NODE_ADDRESS, USERS
from tests.cluster.prerequisites import ROOT
from tests.cluster.process import ProcessId, every_process, network_of, stop
from tests.cluster.progress import step

PORTS = Ports(apiserver=6443, etcd=2379, etcd_peers=2380)
HOLDER = "namespaces"
HOST_FOLDERS = ("/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
"""Paths that no option changes; in the node's mount namespace others are mounted on them."""


class Node(LocalCluster):
    """Runs pods; needs root."""

    tools = (
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "coredns",
        "kubectl",
        "helm",
    )

    def __init__(self, request: Request, toolbox: Toolbox) -> None:
        """Check that it can run here."""
        super().__init__(request, toolbox)
        if os.geteuid() != 0:
            raise ClusterError(f"a cluster with a node needs {ROOT}")
        self.cgroup = f"trainyard-{request.name}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Enters the network namespace."""
        return self._enter("--net")

    @property
    def containerd(self) -> Containerd:
        """Its container runtime."""
        return Containerd(self.paths.run / "containerd.sock", self.paths.state / "containerd")

    def _enter(self, *namespaces: str) -> tuple[str, ...]:
        holder = self.supervisor().process(HOLDER)
        # Not `ip netns exec`: that one mounts another /sys, in which the kubelet finds no cgroups.
        return ("nsenter", f"--target={holder.pid}", *namespaces, "--") if holder else ()

    def _create(self) -> None:
        write_credentials(self.paths, PORTS.apiserver, USERS, addresses=[NODE_ADDRESS])
        node_config.write(self.paths, self.containerd.socket, self.cgroup)

    def _start(self) -> None:
        self.paths.run.mkdir(parents=True, exist_ok=True)
        cgroups.create(self.cgroup)
        self.supervisor().ensure([self._holder()])
        supervisor = self.supervisor(self._enter("--net", "--mount"))
        supervisor.ensure(self._foundation())
        self._import_pause_image()
        supervisor.ensure(self._components())

    def _daemons(self) -> Sequence[Daemon]:
        return [self._holder(), *self._foundation(), *self._components()]

    def _holder(self) -> Daemon:
        script = resources.files("tests.cluster").joinpath("namespaces.sh").read_text()
        command = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-euc", script]
        argv = [*command, HOLDER, str(self.paths.state / "private"), f"{NODE_ADDRESS}/16", *HOST_FOLDERS]
        return Daemon(HOLDER, argv, self._holder_ready)

    def _holder_ready(self) -> bool:
        """The script has reached its end, where it becomes sleep(1)."""
        holder = self.supervisor().process(HOLDER)
        return holder is not None and Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n"

    def _foundation(self) -> list[Daemon]:
        extra = [
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_ADDRESS}",
            f"--kubelet-client-certificate={self.paths.pki / 'admin.crt'}",
            f"--kubelet-client-key={self.paths.pki / 'admin.key'}",
            "--kubelet-preferred-address-types=InternalIP",  # the node's name is not in the DNS
        ]
        containerd = ["containerd", f"--config={self.paths.state / 'containerd.toml'}"]
        return [
            Daemon("containerd", containerd, self._containerd_ready),
            *control_plane(self.toolbox, self.paths, PORTS, self.probe, extra),
        ]

    def _containerd_ready(self) -> bool:
        return self.containerd.socket.exists() and self.containerd.ctr("version").returncode == 0

    def _import_pause_image(self) -> None:
        if busybox.PAUSE not in self.containerd.images():
            with step("making the pause image"):
                archive = self.paths.state / "pause.tar"
                busybox.write_pause_archive(archive)
                self.containerd.load_archive(archive)
                archive.unlink()

    def _components(self) -> list[Daemon]:
        state, probe, gates = self.paths.state, self.probe, self.toolbox.kubernetes.gate_arguments()
        manager = [
            f"--kubeconfig={self.paths.kubeconfig('controller-manager')}",
            f"--service-account-private-key-file={self.paths.pki / 'service-accounts.key'}",
            f"--root-ca-file={self.paths.pki / 'ca.crt'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            f"--flex-volume-plugin-dir={state / 'volume-plugins'}",  # else it makes one in /usr
            *gates,
        ]
        scheduler = [f"--kubeconfig={self.paths.kubeconfig('scheduler')}", "--leader-elect=false", *gates]
        kubelet = [
            f"--config={state / 'kubelet.yaml'}",
            f"--kubeconfig={self.paths.kubeconfig('kubelet')}",
            f"--root-dir={state / 'kubelet'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            *gates,
        ]

        def accounts() -> bool:  # nobody can create a pod before this
            return probe.answers("get", "serviceaccount", "default")

        def ready() -> bool:  # the node's status alone may be that of a kubelet which has died
            return probe.url("http://127.0.0.1:10248")() and probe.answers(
                "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=0"
            )

        def daemon(name: str, arguments: list[str], healthy: Check) -> Daemon:
            return Daemon(name, [str(self.toolbox.path(name)), *arguments], healthy)

        return [
            daemon("kube-controller-manager", manager, accounts),
            daemon("kube-scheduler", scheduler, probe.url("https://127.0.0.1:10259")),
            daemon("kubelet", kubelet, ready),
            daemon("kube-proxy", [f"--config={state / 'kube-proxy.yaml'}"], probe.url("http://127.0.0.1:10256")),
            daemon("coredns", [f"-conf={state / 'Corefile'}"], probe.url("http://127.0.0.1:8181", "/ready")),
        ]

    def _repaired(self) -> bool:
        # Without the holder new daemons could not join those that still run.
        return self.supervisor().process(HOLDER) is not None and super()._repaired()

    def _strays(self) -> list[ProcessId]:
        """As well as what tests have started in its network."""
        daemons = super()._strays()
        networks = {network_of(process) for process in daemons} - {network_of(1), None}
        return [*daemons, *(process for process in every_process() if network_of(process) in networks)]

    def _clean(self) -> None:
        """Kill the pods, which no signal has reached so far."""
        stop(cgroups.processes(self.cgroup), grace=0)
        cgroups.remove(self.cgroup)
        for folder in HOST_FOLDERS:
            with suppress(OSError):  # the host's own, with something in it
                Path(folder).rmdir()
