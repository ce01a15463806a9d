"""The faults: what is done to a running job, and what must follow. To add a fault, add a row."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.cluster.node_config import NODE
from tests.e2e.faults.fault_job import EVERY, STEP_SECONDS, FaultJob
from tests.e2e.namespace import Body, eventually

HANG = {"health": {"hangTimeoutSeconds": 5}}
SMALL = {"workers": {"resources": {"requests": {"cpu": "400m"}, "limits": {"memory": "1Gi"}}}}
FAILS = {"health": {"badSteps": {"action": "Fail"}}}
FIND_UPDATES = """
import gc
from trainyard_trainer.optim.update import LocalUpdate
gc.unfreeze()  # frozen objects are not listed
updates = [found for found in gc.get_objects() if isinstance(found, LocalUpdate)]
"""
"""Code that finds the updates of parameters in a rank, of which there is one."""
SPOIL_GRADIENTS = (
    FIND_UPDATES
    + """
import functools

def spoil(learning_rate, update, follow, left):
    if left == 1:
        update.apply_gradients = follow
    else:
        update.apply_gradients = functools.partial(spoil, update=update, follow=follow, left=left - 1)
    update._parameters[0].grad.mul_(float("nan"))
    return follow(learning_rate)

for update in updates:
    update.apply_gradients = functools.partial(spoil, update=update, follow=update.apply_gradients, left={steps})
"""
)
"""Code that makes the gradients of a rank NaN in so many consecutive steps (`steps`)."""
_EAT = "hoard = []\nwhile True:\n    hoard.append(b'x' * (64 << 20))\n"


@dataclass(frozen=True)
class Fault:
    """A fault, and what must follow."""

    name: str
    """Name of the test and of the job."""
    what: str
    """Description for the page."""
    inject: Callable[[FaultJob], None]
    """Injects the fault; if the fault is temporary, it has been repaired on return."""
    reason: str | None = None
    """Expected status.lastFailure.reason; None: the group does not restart."""
    effect: str | None = None
    """Another reason that is accepted, where the operator may see the effect before the cause or without it."""
    counts: bool = True
    """Whether the restart spends restartPolicy.maxRestarts."""
    loses: int = EVERY
    """Most steps that may be lost; 0: the pods receive SIGTERM and save first."""
    event: str | None = None
    """Expected event besides those of every restart."""
    spec: Body = field(default_factory=dict)
    """Fields of the job's spec besides the defaults."""
    volume: Literal["hostPath", "claim", "tmpfs"] = "hostPath"
    pace: float = STEP_SECONDS
    """Minimum seconds of a step."""
    represented_by: str | None = None
    """The test that proves the same mechanism in `make test`; this row is then left to `make test-all`."""


def kill_rank(job: FaultJob) -> None:
    job.node_faults.signal(job.node_faults.ranks(job.pod())[0])


def kill_launcher(job: FaultJob) -> None:
    job.node_faults.signal(job.node_faults.launcher(job.pod()))


def delete_pod(job: FaultJob) -> None:
    job.namespace.kubectl("delete", "pod", f"{job.name}-1-1", "--wait=false")


def evict_pod(job: FaultJob) -> None:
    name = f"{job.name}-1-1"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{job.namespace.name}/pods/{name}/eviction"
    job.namespace.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def kill_shim(job: FaultJob) -> None:
    job.node_faults.signal(job.node_faults.shim(job.pod()))


def stop_rank(job: FaultJob) -> None:
    job.node_faults.signal(job.node_faults.ranks(job.pod())[0], signal.SIGSTOP)


def cut_off_pod(job: FaultJob) -> None:
    job.node_faults.drop_packets(job.pod())


def spoil_gradient(job: FaultJob) -> None:
    job.in_rank(1, SPOIL_GRADIENTS.format(steps=1))


def run_out_of_memory(job: FaultJob) -> None:
    job.in_rank(1, _EAT)


def kill_operator_and_rank(job: FaultJob) -> None:
    rank = job.node_faults.ranks(job.pod())[0]
    job.kill_operator()
    job.node_faults.signal(rank)


def kill_operator(job: FaultJob) -> None:
    job.kill_operator()


def drain_node(job: FaultJob) -> None:
    """Evict all pods of the node, including the operator's."""
    before = {pod["metadata"]["uid"] for pod in job.pods()}
    job.namespace.kubectl("taint", "node", NODE, "test/drain=now:NoExecute")
    try:
        eventually("pods evicted", lambda: not before & {pod["metadata"]["uid"] for pod in job.pods()})
    finally:
        job.namespace.kubectl("taint", "node", NODE, "test/drain-")


def fill_disk(job: FaultJob) -> None:
    job.volume.fill()
    job.await_warning("could not be written")
    job.volume.free()


def damage_checkpoint(job: FaultJob) -> None:
    """Kill all workers, then truncate the newest checkpoint before the next attempt is up."""
    for index in (1, 0):
        job.node_faults.signal(job.node_faults.launcher(job.pod(index)))
    newest = max(job.checkpoints.glob("step-????????"))
    file = max(newest.glob("*.distcp"))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def restart_api_server(job: FaultJob) -> None:
    job.node_faults.restart("kube-apiserver")


def restart_api_server_and_kill_rank(job: FaultJob) -> None:
    rank = job.node_faults.ranks(job.pod())[0]
    job.node_faults.signal(rank)
    job.node_faults.restart("kube-apiserver")


OF_TRAINING = "tests/e2e/test_training.py::"
OF_THIS_TABLE = "tests/e2e/faults/test_faults.py::"

TABLE = (
    Fault(
        "rank",
        "SIGKILL of a rank",
        kill_rank,
        "SIGKILL",
        represented_by=f"{OF_TRAINING}test_a_killed_rank_restarts_the_whole_group",
    ),
    Fault(
        "launcher",
        "SIGKILL of process 1 of a worker",
        kill_launcher,
        "SIGKILL",
        represented_by=f"{OF_THIS_TABLE}shim",
    ),
    Fault("memory", "a rank exceeds the memory limit of its pod", run_out_of_memory, "OOMKilled", spec=SMALL),
    Fault(
        "number",
        "one gradient is NaN on one rank",
        spoil_gradient,
        "BadSteps",
        spec=FAILS,
        represented_by="tests/trainer/test_bad_steps.py::test_an_attempt_fails_and_names_the_rank",
    ),
    Fault("stopped", "SIGSTOP of a rank", stop_rank, "Hang", spec=HANG),
    Fault(
        "partition",
        "the network of a pod drops all packets",
        cut_off_pod,
        "Hang",
        spec=HANG,
        represented_by=f"{OF_THIS_TABLE}stopped",
    ),
    Fault("shim", "SIGKILL of the containerd shim of a pod", kill_shim, "Error"),
    Fault(
        "deleted",
        "`kubectl delete pod`",
        delete_pod,
        "Deleted",
        counts=False,
        loses=0,
        volume="claim",
        represented_by=f"{OF_TRAINING}test_a_deleted_pod_restarts_the_group_without_spending_the_budget",
    ),
    Fault(
        "evicted",
        "a pod is evicted through the API",
        evict_pod,
        "EvictionByEvictionAPI",
        counts=False,
        loses=0,
        represented_by=f"{OF_THIS_TABLE}drained",
    ),
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
        "the newest checkpoint is truncated, and all workers are killed",
        damage_checkpoint,
        "SIGKILL",
        loses=2 * EVERY,
        event="CheckpointDamaged",
    ),
    Fault("disk", "the checkpoint volume is full for some time", fill_disk, event="CheckpointFailed", volume="tmpfs"),
    Fault(
        "operator-and-rank",
        "SIGKILL of the operator and of a rank",
        kill_operator_and_rank,
        "SIGKILL",
        represented_by=f"{OF_THIS_TABLE}api-server-and-rank",
    ),
    Fault(
        "operator",
        "SIGKILL of the operator",
        kill_operator,
        pace=0.2,
        represented_by="tests/integration/test_crash.py::"
        "test_a_job_survives_an_operator_that_is_killed_at_any_moment_of_its_life",
    ),
    Fault(
        "api-server",
        "SIGKILL of the API server, which restarts",
        restart_api_server,
        pace=0.2,
        represented_by=f"{OF_THIS_TABLE}api-server-and-rank",
    ),
    Fault(
        "api-server-and-rank",
        "SIGKILL of the API server and of a rank",
        restart_api_server_and_kill_rank,
        "SIGKILL",
        effect="RuntimeError",  # when the operator sees both, it no longer waits for a cause
    ),
)
