"""A control plane whose nodes KWOK simulates: real etcd, kube-apiserver and kube-scheduler, pods without processes.

KWOK (https://kwok.sigs.k8s.io) plays the kubelets with its own fast stages: a node is ready, a scheduled pod runs, and
a deleted pod is gone, each at once. No controller manager runs, so nothing else writes to the API server.
"""

import hashlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, ClusterError, Profile, down, up
from tests.cluster.binaries import find_go
from tests.cluster.control_plane import Probe
from tests.cluster.daemons import Daemon, Supervisor
from tests.cluster.model import Request
from tests.cluster.paths import locked, paths_of, user_folder
from tests.cluster.progress import step
from tests.support.kube import Api, eventually

NAME = "bench"
MODULE = Path(__file__).parent / "kwok"
"""Pins KWOK."""
STAGES = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-delete")
PODS_PER_NODE = 110


@contextmanager
def simulated_cluster(name: str = NAME) -> Iterator[Cluster]:
    """A control plane with a scheduler and KWOK, but without nodes; it is removed at the end."""
    program = _kwok()
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


def _kwok() -> Path:
    """Return the program, which is built on first use."""
    key = hashlib.sha256(b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))).hexdigest()[:16]
    folder = user_folder("CACHE") / "bin" / f"kwok-{key}"
    with locked(folder.with_suffix(".lock")):
        if not (folder / "kwok").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with (
                step("compiling kwok (minutes the first time)", slow=True),
                tempfile.TemporaryDirectory(dir=folder) as new,
            ):
                _go("build", "-trimpath", "-ldflags=-s -w", "-o", f"{new}/kwok", "sigs.k8s.io/kwok/cmd/kwok")
                (Path(new) / "kwok").rename(folder / "kwok")
    return folder / "kwok"


def _stages() -> str:
    """Return the stages as KWOK ships them."""
    folder = Path(json.loads(_go("mod", "download", "-json", "sigs.k8s.io/kwok"))["Dir"])
    return "\n---\n".join((folder / "kustomize" / "stage" / f"{name}.yaml").read_text("utf-8") for name in STAGES)


def _go(*arguments: str) -> str:
    """Run the go command in the module; return what it prints."""
    command = [find_go(MODULE), *arguments]
    done = subprocess.run(command, cwd=MODULE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"go {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
