"""etcd and kube-apiserver: their credentials, their arguments, their health."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import pki
from tests.cluster.daemons import Check, Daemon
from tests.cluster.model import Toolbox
from tests.cluster.paths import Paths

SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
ADMINISTRATOR = pki.Subject("admin", group="system:masters")


@dataclass(frozen=True)
class Ports:
    """Where the control plane listens."""

    apiserver: int
    etcd: int
    etcd_peers: int


def free_ports() -> Ports:
    """Ports of the loopback interface that nobody uses; held all at once so that they differ."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(*(one.getsockname()[1] for one in sockets))
    finally:
        for one in sockets:
            one.close()


def write_credentials(paths: Paths, port: int, users: Mapping[str, pki.Subject], addresses: Sequence[str]) -> None:
    """Make the CA, the API server's and each user's certificate, and a kubeconfig for each user."""
    shutil.rmtree(paths.pki, ignore_errors=True)
    paths.pki.mkdir(parents=True)
    ca = pki.certificate_authority()
    hosts = ["localhost", *SERVICE_NAMES, "127.0.0.1", KUBERNETES_SERVICE, *addresses]
    ca.write(paths.pki, "ca")
    pki.issue(ca, pki.Subject("kube-apiserver", hosts=hosts)).write(paths.pki, "apiserver")
    pki.write_key(paths.pki / "service-accounts.key", pki.new_key())
    for name, subject in users.items():
        pair = pki.issue(ca, subject)
        pair.write(paths.pki, name)
        file = paths.kubeconfig(name)
        file.touch(mode=0o600)
        file.write_text(pki.kubeconfig(f"https://127.0.0.1:{port}", ca, pair))


def etcd_argv(program: Path, paths: Paths, ports: Ports) -> list[str]:
    """A single member. Nothing is synced to disk: the data is not meant to survive the machine."""
    client = f"http://127.0.0.1:{ports.etcd}"
    peers = f"http://127.0.0.1:{ports.etcd_peers}"
    return [
        str(program),
        f"--data-dir={paths.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        f"--initial-cluster-token={secrets.token_hex(8)}",
        "--unsafe-no-fsync",
    ]


def apiserver_argv(program: Path, paths: Paths, ports: Ports) -> list[str]:
    """What every profile has in common."""
    key = paths.pki / "service-accounts.key"
    return [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--secure-port={ports.apiserver}",
        f"--tls-cert-file={paths.pki / 'apiserver.crt'}",
        f"--tls-private-key-file={paths.pki / 'apiserver.key'}",
        f"--client-ca-file={paths.pki / 'ca.crt'}",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
    ]


@dataclass(frozen=True)
class Probe:
    """Asks a server of the cluster whether it is well, by way of kubectl: that one runs in any network."""

    kubectl: Path
    kubeconfig: Path
    prefix: Sequence[str] = ()

    def answers(self, *arguments: str) -> bool:
        """Whether a kubectl command succeeds."""
        command = [*self.prefix, str(self.kubectl), "--request-timeout=5s", *arguments]
        cache = str(self.kubeconfig.parent / "kubectl-cache")
        environment = {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": cache, "PATH": "/usr/bin:/bin"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def api(self, path: str) -> Check:
        """A check of something the API server serves."""
        return lambda: self.answers("get", "--raw", path)

    def url(self, server: str, path: str = "/healthz") -> Check:
        """A check of another server, whose certificate nobody knows."""
        return lambda: self.answers("--server", server, "--insecure-skip-tls-verify", "get", "--raw", path)


def control_plane(toolbox: Toolbox, paths: Paths, ports: Ports, probe: Probe, extra: Sequence[str]) -> list[Daemon]:
    """Both; `extra` are the API server's arguments of one profile."""
    etcd = etcd_argv(toolbox.path("etcd"), paths, ports)
    apiserver = [
        *apiserver_argv(toolbox.path("kube-apiserver"), paths, ports),
        *toolbox.kubernetes.apiserver_arguments(),
    ]
    return [
        Daemon("etcd", etcd, probe.url(f"http://127.0.0.1:{ports.etcd}", "/health")),
        Daemon("kube-apiserver", [*apiserver, *extra], probe.api("/readyz")),
    ]
