"""What the operator sees of the world: a pod, reduced to what decides the fate of its group."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from trainyard.protocol import constants
from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason

Pod = Mapping[str, Any]
"""A pod as the API server returns it. The process backend keeps its own in the same shape."""


class WorkerState(StrEnum):
    """What the worker container of a pod is doing."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a pod does not start, as far as the kubelet and the scheduler tell."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Worker:
    """One pod of a job."""

    name: str
    uid: str
    attempt: int
    index: int
    replicas: int
    """Workers of the group that this pod was made for."""
    state: WorkerState
    runs: int
    """Attempt that its processes take part in: later than `attempt` once the group has been restarted inside its
    pods."""
    supervised: bool = False
    """The pod takes orders (`trainyard.protocol.launcher_state`)."""
    held: bool = False
    """Its processes have failed, as the state says, but the pod lives, and waits for orders."""
    deaf: bool = False
    """It has not followed an order."""
    serves: bool = False
    """The pod is the parameter server."""
    placeholder: bool = False
    """The pod does nothing but show that there is room for one more worker."""
    ready: bool = False
    deletion_at: datetime | None = None
    """The pod is being deleted, and should be gone by then: its grace period is over."""
    disrupted: bool = False
    """The cluster took the pod away (eviction, preemption, node shutdown): not the program's fault."""
    node: str | None = None
    exit_code: int | None = None
    reason: str = ""
    last_words: str = ""
    """Termination message of the container, or the message of the pod."""
    finished_at: datetime | None = None
    obstacle: Obstacle | None = None

    @property
    def terminating(self) -> bool:
        """Whether the pod is being deleted."""
        return self.deletion_at is not None

    @property
    def active(self) -> bool:
        """Whether the pod holds resources."""
        return self.held or self.state in (WorkerState.PENDING, WorkerState.RUNNING)

    @property
    def obeys(self) -> bool:
        """Whether another attempt can be started in the pod."""
        alive = self.state is WorkerState.RUNNING or self.held
        return self.supervised and alive and not (self.deaf or self.disrupted or self.terminating)

    @property
    def message(self) -> TerminationMessage | None:
        """The worker's last words, if they are those of the built-in trainer."""
        return TerminationMessage.decode(self.last_words) if self.last_words else None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the last plan could not be applied (quota, pod security, a name that is taken)."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a plan depends on."""

    job: TrainingJob
    workers: tuple[Worker, ...]
    now: datetime
    progress: Progress | None = None
    """What rank 0's metrics page showed when it was last read, with step 0 before the first one."""
    trouble: Trouble | None = None


_DISRUPTIONS = frozenset(
    {
        "Evicted",
        "NodeLost",
        "NodeShutdown",
        "Shutdown",
        "Terminated",
        "Preempting",
        "NodeAffinity",
        "UnexpectedAdmissionError",
    }
)
_IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


_NUMBERS = (constants.LABEL_ATTEMPT, constants.LABEL_INDEX, constants.LABEL_REPLICAS)


def job_name_of(pod: Pod) -> str | None:
    """Name of the job whose worker a pod is; None for a pod without the labels of a worker (anybody may set one)."""
    labels = pod["metadata"].get("labels") or {}
    if not all(labels.get(label, "").isdecimal() for label in _NUMBERS):
        return None
    name: str | None = labels.get(constants.LABEL_JOB)
    return name


def observe_worker(pod: Pod) -> Worker:
    """Reduce a pod to a `Worker`.

    Raises:
        KeyError, ValueError: the pod lacks the labels that the operator puts on its pods.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata["labels"]
    container = _worker_container(status)
    ended = container.get("state", {}).get("terminated") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    reason, words = ended.get("reason") or status.get("reason"), ended.get("message") or status.get("message")
    target = conditions.get("DisruptionTarget", {})
    state = _state(status.get("phase", "Pending"), container)
    marked = target.get("status") == "True" and state is not WorkerState.SUCCEEDED
    if marked:  # who takes the pod away knows why; all that its program says is how it was killed
        reason, words = status.get("reason") or target.get("reason"), status.get("message") or target.get("message")
    return Worker(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(labels[constants.LABEL_ATTEMPT]),
        index=int(labels[constants.LABEL_INDEX]),
        replicas=int(labels[constants.LABEL_REPLICAS]),
        state=state,
        runs=int(labels[constants.LABEL_ATTEMPT]),
        supervised=_is_supervised(pod),
        serves=labels.get(constants.LABEL_ROLE) == constants.ROLE_SERVER,
        placeholder=labels.get(constants.LABEL_ROLE) == constants.ROLE_PLACEHOLDER,
        ready=conditions.get("Ready", {}).get("status") == "True",
        deletion_at=_moment(metadata.get("deletionTimestamp")),  # when it was asked for, plus the grace period
        disrupted=marked or status.get("reason") in _DISRUPTIONS,
        node=(pod.get("spec") or {}).get("nodeName"),
        exit_code=ended.get("exitCode"),
        reason=reason or "",
        last_words=(words or "").strip(),
        finished_at=_moment(ended.get("finishedAt")),
        obstacle=_obstacle(metadata["name"], container, conditions),
    )


def with_state(worker: Worker, known: PodState | None, *, deaf: bool) -> Worker:
    """A worker with what its launcher has said, when it was last asked."""
    if known is None:
        return replace(worker, deaf=deaf)
    worker = replace(worker, deaf=deaf, runs=known.attempt)
    end = known.exit_info
    if end is None or worker.ready or worker.state is not WorkerState.RUNNING:
        return worker
    return replace(
        worker,
        state=WorkerState.FAILED,
        held=True,
        exit_code=end.exit_code,
        reason="Error",
        last_words=end.message.strip(),
        finished_at=end.at,
    )


def _is_supervised(pod: Pod) -> bool:
    containers = (pod.get("spec") or {}).get("containers") or ()
    return any(
        port.get("name") == constants.LAUNCHER_PORT_NAME
        for container in containers
        if container["name"] == constants.WORKER_CONTAINER
        for port in container.get("ports") or ()
    )


def _worker_container(status: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in status.get("containerStatuses") or ():
        if container["name"] == constants.WORKER_CONTAINER:
            found: Mapping[str, Any] = container
            return found
    return {}


def _state(phase: str, container: Mapping[str, Any]) -> WorkerState:
    """The worker container decides, not the pod: a sidecar may outlive it. Evicted pods have no container."""
    state = container.get("state", {})
    if "terminated" in state:
        return WorkerState.SUCCEEDED if state["terminated"].get("exitCode") == 0 else WorkerState.FAILED
    if phase in ("Succeeded", "Failed"):
        return WorkerState(phase)
    return WorkerState.RUNNING if "running" in state else WorkerState.PENDING


def _obstacle(pod: str, container: Mapping[str, Any], conditions: Mapping[str, Any]) -> Obstacle | None:
    waiting = container.get("state", {}).get("waiting") or {}
    detail = " ".join((waiting.get("message") or waiting.get("reason") or "").split())
    if waiting.get("reason") in _IMAGE_REASONS:
        fix = "check spec.image, spec.imagePullSecrets and the registry"
        return Obstacle(
            Reason.IMAGE_PULL_FAILED, f"pod {pod}: cannot pull image {container.get('image')}: {detail}; {fix}"
        )
    if waiting.get("reason") in _CONFIG_REASONS:
        fix = "check spec.env, spec.command and spec.workers.template"
        return Obstacle(Reason.CONTAINER_CONFIG, f"pod {pod}: container cannot be created: {detail}; {fix}")
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        fix = "check spec.workers.resources and spec.workers.template, or add nodes"
        return Obstacle(Reason.UNSCHEDULABLE, f"pod {pod}: cannot be scheduled: {scheduled.get('message', '')} {fix}")
    return None


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
