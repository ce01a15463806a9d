"""Some controllers of Kubernetes itself, for a cluster that has none."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import Cluster
from tests.cluster.process import ProcessId, spawn, stop


@contextmanager
def controllers(cluster: Cluster, log: Path, *names: str, arguments: tuple[str, ...] = ()) -> Iterator[None]:
    """Some controllers of Kubernetes itself, for the time of the context."""
    program = cluster.toolbox.path("kube-controller-manager")
    command = [str(program), f"--kubeconfig={cluster.kubeconfig}", f"--controllers={','.join(names)}"]
    command += ["--leader-elect=false", "--secure-port=0", *cluster.toolbox.kubernetes.gate_arguments(), *arguments]
    process: ProcessId = spawn(command, log, log.parent)
    try:
        yield
        assert process.alive(), f"the controllers have ended: {log.read_text()[-2000:]}"
    finally:
        stop([process], grace=1)


def free_port() -> int:
    """Return an unused port of the loopback interface."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
