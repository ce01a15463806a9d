"""Nodes without machines, for a real scheduler: it binds pods to them, and a fake kubelet lets these run."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.cluster import Cluster
from tests.cluster.process import ProcessId, spawn, stop
from tests.support import kubelet
from tests.support.background import background
from tests.support.fake_kubelet import finish_deletion, follow_pods, now
from tests.support.kube import Api, Namespace, Object, eventually
from tests.support.need import require
from trainyard.protocol import constants

HOST = "kubernetes.io/hostname"


async def make_node(api: Api, name: str, *, cpu: int, labels: Mapping[str, str] | None = None) -> None:
    """Create a node with this many CPUs that is ready."""
    metadata = {"name": name, "labels": {HOST: name, **(labels or {})}}
    await api.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    resources = {"cpu": str(cpu), "memory": "64Gi", "pods": "110"}
    conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
    status = {"capacity": resources, "allocatable": resources, "conditions": conditions}
    await api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
    # Without a controller the taint not-ready, which every new node gets, would stay.
    await api.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": []}})


@asynccontextmanager
async def nodes(api: Api, *wanted: tuple[str, int, Mapping[str, str]]) -> AsyncIterator[None]:
    """Nodes for the time of the context: name, number of CPUs, labels."""
    try:
        await asyncio.gather(*(make_node(api, name, cpu=cpu, labels=labels) for name, cpu, labels in wanted))
        yield
    finally:
        await asyncio.gather(*(api.delete(f"/api/v1/nodes/{name}") for name, _, _ in wanted))


def needs_gangs(cluster: Cluster) -> None:
    """Skip where the version has no gang scheduling of its own."""
    served = cluster.toolbox.kubernetes.feature_gates.get("GenericWorkload", False)
    require(served, "Kubernetes with gang scheduling (1.37 or later)")


@contextmanager
def kube_scheduler(cluster: Cluster, log: Path) -> Iterator[None]:
    """The scheduler of the cluster's version, with its feature gates, for the time of the context."""
    program = cluster.toolbox.path("kube-scheduler")
    arguments = [f"--kubeconfig={cluster.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    arguments += cluster.toolbox.kubernetes.gate_arguments()
    process: ProcessId = spawn([*cluster.command_prefix, str(program), *arguments], log, log.parent)
    try:
        yield
        assert process.alive(), f"the scheduler has ended: {log.read_text()[-2000:]}"
    finally:
        stop([process], grace=1)


class BoundPods:
    """Plays the kubelets of all nodes: pods that are bound run, and by default end once their whole group has run.

    Args:
        namespace: namespace of the pods.
        size: number of pods of a group.
        ends: groups end by themselves.
    """

    def __init__(self, namespace: Namespace, size: int, *, ends: bool = True) -> None:
        self.namespace, self.size, self.ends = namespace, size, ends
        self.bound: dict[str, set[str]] = {}
        """Names of the pods that were bound, by group."""
        self.stubborn = False
        """Containers of pods that are being deleted keep running, as while they save a checkpoint."""
        self._seen: set[str] = set()

    async def end(self, group: str, *names: str, code: int = 0) -> None:
        """Let the containers of a group end, or of some pods of it."""
        ended = {"status": kubelet.ended(now(), code)}
        await asyncio.gather(
            *(self.namespace.api.patch(self._status(name), ended) for name in names or self.bound[group])
        )

    async def let_go(self) -> None:
        """Let the containers of pods that are being deleted end, from now on."""
        self.stubborn = False
        for pod in (await self.namespace.pods()).values():
            await self._handle(pod)

    def _status(self, name: str) -> str:
        return self.namespace.core("pods", name, "status")

    async def _handle(self, pod: Object) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if pod["metadata"].get("deletionTimestamp"):
            await self._terminate(pod)
        elif pod["spec"].get("nodeName") and uid not in self._seen:
            if not pod["status"].get("containerStatuses"):
                await self.namespace.api.patch(self._status(name), {"status": kubelet.running(now())})
            labels = pod["metadata"]["labels"]
            group = f"{labels[constants.LABEL_JOB]}-{labels[constants.LABEL_ATTEMPT]}"
            members = self.bound.setdefault(group, set())
            members.add(name)
            if self.ends and len(members) == self.size:
                await self.end(group)
            self._seen.add(uid)

    async def _terminate(self, pod: Object) -> None:
        """End a pod that is being deleted: its containers first, since finalizers may wait for that."""
        name = pod["metadata"]["name"]
        if pod["status"].get("phase") == "Running":
            if self.stubborn:
                return
            await self.namespace.api.patch(self._status(name), {"status": kubelet.ended(now(), 143)})
        await finish_deletion(self.namespace, name)

    async def run(self) -> None:
        """Follow the pods of the namespace until cancelled."""
        await follow_pods(self.namespace, self._handle)


@asynccontextmanager
async def bound_pods_run(namespace: Namespace, size: int, *, ends: bool = True) -> AsyncIterator[BoundPods]:
    """Play the kubelets of groups of this size (`BoundPods`), for the time of the context."""
    pods = BoundPods(namespace, size, ends=ends)
    async with background(pods.run()):
        yield pods


async def all_bound(namespace: Namespace, *names: str, seconds: float = 30.0) -> dict[str, str]:
    """Wait until pods have a node; returns the name of the node of each."""

    async def check() -> dict[str, str]:
        pods = await namespace.pods()
        found = {name: pods[name]["spec"].get("nodeName", "") for name in names if name in pods}
        assert len(found) == len(names), pods.keys()
        assert all(found.values()), {
            name: pods[name]["status"].get("conditions") for name, node in found.items() if not node
        }
        return found

    return await eventually(check, seconds=seconds)
