"""The faults: what is done to a running job, and what is to follow. To add one is to add a row."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.cluster.node_config import NODE
from tests.e2e.faults.scene import EVERY, STEP_SECONDS, Scene
from tests.e2e.world import Body, eventually

HANG = {"health": {"hangTimeoutSeconds": 5}}
SMALL = {"workers": {"resources": {"requests": {"cpu": "400m"}, "limits": {"memory": "1Gi"}}}}
FAILS = {"health": {"badSteps": {"action": "Fail"}}}
SPOIL_GRADIENT = """
import functools
import gc

from trainyard_trainer.optim.update import LocalUpdate

def once(learning_rate, update, follow):
    update.apply_gradients = follow
    update._parameters[0].grad.mul_(float("nan"))
    return follow(learning_rate)

for update in gc.get_objects():
    if isinstance(update, LocalUpdate):
        update.apply_gradients = functools.partial(once, update=update, follow=update.apply_gradients)
"""
_EAT = "hoard = []\nwhile True:\n    hoard.append(b'x' * (64 << 20))\n"


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    """In one word, for test and job."""
    what: str
    """In a few, for people."""
    inject: Callable[[Scene], None]
    """Do it. Returns when it is done, and undone if it is one that passes."""
    reason: str | None = None
    """What status.lastFailure.reason is to be; None: the group does not restart."""
    effect: str | None = None
    """What may be named instead, where nobody may be there to see the cause, or see it long after its effect."""
    counts: bool = True
    """Whether the restart spends restartPolicy.maxRestarts."""
    loses: int = EVERY
    """Most steps that may be lost; 0: the pods are told to stop, and save first."""
    event: str | None = None
    """An event of the job besides those of every restart."""
    spec: Body = field(default_factory=dict)
    """What the job's spec has besides."""
    volume: Literal["hostPath", "claim", "tmpfs"] = "hostPath"
    pace: float = STEP_SECONDS
    """Least seconds of a step."""


def kill_rank(scene: Scene) -> None:
    scene.hands.signal(scene.hands.ranks(scene.pod())[0])


def kill_launcher(scene: Scene) -> None:
    scene.hands.signal(scene.hands.launcher(scene.pod()))


def delete_pod(scene: Scene) -> None:
    scene.world.kubectl("delete", "pod", f"{scene.job}-1-1", "--wait=false")


def evict_pod(scene: Scene) -> None:
    name = f"{scene.job}-1-1"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{scene.world.namespace}/pods/{name}/eviction"
    scene.world.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def kill_shim(scene: Scene) -> None:
    scene.hands.signal(scene.hands.shim(scene.pod()))


def stop_rank(scene: Scene) -> None:
    scene.hands.signal(scene.hands.ranks(scene.pod())[0], signal.SIGSTOP)


def cut_off_pod(scene: Scene) -> None:
    scene.hands.cut_off(scene.pod())


def spoil_gradient(scene: Scene) -> None:
    scene.in_rank(1, SPOIL_GRADIENT)


def run_out_of_memory(scene: Scene) -> None:
    scene.in_rank(1, _EAT)


def kill_operator_and_rank(scene: Scene) -> None:
    rank = scene.hands.ranks(scene.pod())[0]
    scene.kill_operator()
    scene.hands.signal(rank)


def kill_operator(scene: Scene) -> None:
    scene.kill_operator()


def drain_node(scene: Scene) -> None:
    """The operator is on that node, too."""
    before = {pod["metadata"]["uid"] for pod in scene.pods()}
    scene.world.kubectl("taint", "node", NODE, "test/drain=now:NoExecute")
    try:
        eventually("pods evicted", lambda: not before & {pod["metadata"]["uid"] for pod in scene.pods()})
    finally:
        scene.world.kubectl("taint", "node", NODE, "test/drain-")


def fill_disk(scene: Scene) -> None:
    scene.volume.fill()
    scene.await_warning("could not be written")
    scene.volume.free()


def damage_checkpoint(scene: Scene) -> None:
    """All is dead before the newest checkpoint is cut short, and the next attempt is not up yet."""
    for index in (1, 0):
        scene.hands.signal(scene.hands.launcher(scene.pod(index)))
    newest = max(scene.checkpoints.glob("step-????????"))
    file = max(newest.glob("*.distcp"))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def restart_api_server(scene: Scene) -> None:
    scene.hands.restart("kube-apiserver")


def restart_api_server_and_kill_rank(scene: Scene) -> None:
    rank = scene.hands.ranks(scene.pod())[0]
    scene.hands.signal(rank)
    scene.hands.restart("kube-apiserver")


TABLE = (
    Fault("rank", "SIGKILL of a rank", kill_rank, "SIGKILL"),
    Fault("launcher", "SIGKILL of process 1 of a worker", kill_launcher, "SIGKILL"),
    Fault("memory", "a rank takes more than its pod's memory limit", run_out_of_memory, "OOMKilled", spec=SMALL),
    Fault("number", "a gradient is no number, once, on one rank", spoil_gradient, "BadSteps", spec=FAILS),
    Fault("stopped", "SIGSTOP of a rank", stop_rank, "Hang", spec=HANG),
    Fault("partition", "a pod's network drops all packets", cut_off_pod, "Hang", spec=HANG),
    Fault("shim", "SIGKILL of containerd's shim of a pod", kill_shim, "Error"),
    Fault("deleted", "`kubectl delete pod`", delete_pod, "Deleted", counts=False, loses=0, volume="claim"),
    Fault("evicted", "a pod is evicted through the API", evict_pod, "EvictionByEvictionAPI", counts=False, loses=0),
    Fault(
        "drained",
        "the node is drained by a taint, with the operator",
        drain_node,
        "DeletionByTaintManager",
        effect="WorkerLost",  # if the pods are gone before the operator is back
        counts=False,
        loses=0,
    ),
    Fault(
        "damaged",
        "the newest checkpoint is cut short, and all workers are killed",
        damage_checkpoint,
        "SIGKILL",
        loses=2 * EVERY,
        event="CheckpointDamaged",
    ),
    Fault("disk", "the checkpoint volume is full for a while", fill_disk, event="CheckpointFailed", volume="tmpfs"),
    Fault("operator-and-rank", "SIGKILL of the operator and of a rank", kill_operator_and_rank, "SIGKILL"),
    Fault("operator", "SIGKILL of the operator", kill_operator, pace=0.2),
    Fault("api-server", "SIGKILL of the API server, which starts again", restart_api_server, pace=0.2),
    Fault(
        "api-server-and-rank",
        "the same, and a rank is killed",
        restart_api_server_and_kill_rank,
        "SIGKILL",
        effect="RuntimeError",  # by the time that both are seen the operator has no patience left for a cause
    ),
)
