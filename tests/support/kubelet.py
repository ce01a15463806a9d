"""Pod statuses as a real kubelet and a real scheduler write them.

Unit tests put them into pods that exist in memory only; integration tests patch them into pods of a real API
server, where no kubelet runs.
"""

from datetime import datetime
from typing import Any

from trainyard.protocol import constants

Status = dict[str, Any]

IMAGE = "example.com/train:1"


def zulu(moment: datetime) -> str:
    """A moment as the API has it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _status(phase: str, state: dict[str, Any], *, ready: bool = False, **more: Any) -> Status:
    container = {
        "name": constants.WORKER_CONTAINER,
        "image": IMAGE,
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "True" if ready else "False"},
    ]
    return {"phase": phase, "conditions": conditions, "containerStatuses": [container], **more}


def scheduled() -> Status:
    """A node was found, the container is not there yet."""
    return _status("Pending", {"waiting": {"reason": "ContainerCreating"}})


def unschedulable(message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") -> Status:
    """No node will have the pod."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "") -> Status:
    """The container cannot be started (ImagePullBackOff, CreateContainerConfigError, ...)."""
    return _status("Pending", {"waiting": {"reason": reason, **({"message": message} if message else {})}})


def running(since: datetime, *, ready: bool = True, ip: str = "10.0.0.1") -> Status:
    """The worker runs."""
    return _status("Running", {"running": {"startedAt": zulu(since)}}, ready=ready, podIP=ip, podIPs=[{"ip": ip}])


def ended(at: datetime, code: int, *, reason: str = "", message: str = "") -> Status:
    """The worker has exited."""
    terminated = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "startedAt": zulu(at),
        "finishedAt": zulu(at),
        **({"message": message} if message else {}),
    }
    return _status("Failed" if code else "Succeeded", {"terminated": terminated})


def evicted(message: str = "The node was low on resource: memory.") -> Status:
    """The kubelet threw the pod out under pressure: no container is left to ask."""
    return {"phase": "Failed", "reason": "Evicted", "message": message}


def refused(reason: str = "OutOfcpu") -> Status:
    """The kubelet refused to run the pod: no container was ever started."""
    return {"phase": "Failed", "reason": reason, "message": "Pod was rejected: the node has no free CPU"}


def over_its_limit(at: datetime) -> Status:
    """The kubelet threw the pod out because it used more storage than its own spec allows."""
    message = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
    return {**ended(at, 137), "phase": "Failed", "reason": "Evicted", "message": message}


def init_failed(at: datetime, code: int = 3) -> Status:
    """An init container has failed, so the worker was never started."""
    failed = ended(at, code)["containerStatuses"][0] | {"name": "setup"}
    return {**_status("Failed", {"waiting": {"reason": "PodInitializing"}}), "initContainerStatuses": [failed]}


def beside_sidecar(status: Status) -> Status:
    """The same worker, in a pod with a sidecar that never ends by itself."""
    sidecar = {"name": "istio-proxy", "image": "example.com/proxy", "state": {"running": {}}}
    return {**status, "phase": "Running", "containerStatuses": [*status["containerStatuses"], sidecar]}


def disrupted(status: Status, reason: str = "PreemptionByScheduler") -> Status:
    """The same, with the condition that the cluster sets before it takes a pod away."""
    mark = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "preempted"}
    return {**status, "conditions": [*status.get("conditions", ()), mark]}
