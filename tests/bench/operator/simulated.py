"""A control plane whose nodes KWOK simulates: real etcd, kube-apiserver and kube-scheduler, pods without processes.

KWOK (https://kwok.sigs.k8s.io) plays the kubelets with its own fast stages: a node is ready, a scheduled pod runs, and
a deleted pod is gone, each at once. No controller manager runs, so nothing else writes to the API server.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, Profile, down, up
from tests.cluster.add_ons import AddOn
from tests.cluster.control_plane import Probe
from tests.cluster.daemons import Daemon, Supervisor
from tests.cluster.model import Request
from tests.cluster.paths import paths_of
from tests.support.kube import Api, eventually

NAME = "bench"
KWOK = AddOn(Path(__file__).parent / "kwok", "sigs.k8s.io/kwok", "cmd/kwok")
STAGES = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-delete")
PODS_PER_NODE = 110


@contextmanager
def simulated_cluster(name: str = NAME) -> Iterator[Cluster]:
    """A control plane with a scheduler and KWOK, but without nodes; it is removed at the end."""
    program = KWOK.program()
    cluster = up(Profile.CONTROL_PLANE, name=name)
    try:
        _start(cluster, name, program)
        yield cluster
    finally:
        down(Profile.CONTROL_PLANE, name=name)


def _start(cluster: Cluster, name: str, kwok: Path) -> None:
    paths = paths_of(Request(Profile.CONTROL_PLANE, name))
    stages = paths.state / "stages.yaml"
    stages.write_text(_stages(), "utf-8")
    scheduler_port, kwok_port = _free_ports()
    kubeconfig = f"--kubeconfig={cluster.kubeconfig}"
    scheduler = [str(cluster.toolbox.path("kube-scheduler")), kubeconfig, "--leader-elect=false"]
    scheduler += [f"--secure-port={scheduler_port}", *cluster.toolbox.kubernetes.gate_arguments()]
    simulator = [str(kwok), kubeconfig, f"--config={stages}", "--manage-all-nodes=true"]
    simulator += [f"--server-address=127.0.0.1:{kwok_port}", "--cidr=10.0.0.0/16"]
    probe = Probe(cluster.kubectl, cluster.kubeconfig)
    Supervisor(paths).ensure(
        [
            Daemon("kube-scheduler", scheduler, probe.url(f"https://127.0.0.1:{scheduler_port}")),
            Daemon("kwok", simulator, probe.url(f"http://127.0.0.1:{kwok_port}")),
        ]
    )


async def add_nodes(api: Api, count: int) -> None:
    """Create simulated nodes, and wait until each of them is ready."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": str(PODS_PER_NODE)}
    for number in range(count):
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"node-{number}", "labels": {"kubernetes.io/hostname": f"node-{number}"}},
            "status": {"allocatable": resources, "capacity": resources},
        }
        await api.post("/api/v1/nodes", body)
        # A controller would remove the taint of a node that is new.
        await api.patch(f"/api/v1/nodes/node-{number}", {"spec": {"taints": None}})

    async def check() -> None:
        nodes = (await api.get("/api/v1/nodes"))["items"]
        ready = [node for node in nodes if _is_ready(node)]
        assert len(ready) == count

    await eventually(check, seconds=60)


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in node["status"].get("conditions") or ()}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")


def _stages() -> str:
    """Return the stages as KWOK ships them."""
    folder = KWOK.sources() / "kustomize" / "stage"
    return "\n---\n".join((folder / f"{name}.yaml").read_text("utf-8") for name in STAGES)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
