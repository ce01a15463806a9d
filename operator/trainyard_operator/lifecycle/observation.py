"""The observation that a plan is made from: each pod reduced to what decides the lifecycle of its group."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from sys import intern
from typing import Any

from trainyard.protocol import constants
from trainyard.protocol.launcher_state import PodState
from trainyard.protocol.progress import Progress
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.containers import Container, SchedulingBlocker, container_blocker, read_containers
from trainyard_operator.lifecycle.pod_end import ENDED_PHASES, read_end, removal_target
from trainyard_operator.lifecycle.scheduling_blockers import node_blocker
from trainyard_operator.pod_input.text import bounded_message, clean_text

Pod = Mapping[str, Any]
"""A pod as the API server returns it. The process backend keeps its pods in the same form."""


class WorkerState(StrEnum):
    """State of the worker container of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


MAX_BLOCKER = 2048
MAX_REASON = 200


@dataclass(frozen=True, slots=True)
class WorkerPod:
    """One pod of a job: a worker, the parameter server, or a placeholder."""

    name: str
    uid: str
    attempt: int
    """Attempt that the pod was created for."""
    index: int
    replicas: int
    """Number of workers in the group that the pod was created for."""
    state: WorkerState
    running_attempt: int
    """Attempt that its processes take part in: later than `attempt` after a restart in place."""
    has_launcher: bool = False
    """A launcher in the pod accepts restart requests (`trainyard.protocol.launcher_state`)."""
    awaiting_restart: bool = False
    """Its ranks have failed, as `state` says, but the pod is alive and awaits a restart request."""
    unresponsive: bool = False
    """Its launcher rejected or did not answer a restart request."""
    revision: str | None = None
    """Name of the snapshot of the spec that it was built from; None for a pod of an earlier version of the operator."""
    launcher_silent: bool = False
    """Its launcher was queried several times and has not answered as a launcher does."""
    is_parameter_server: bool = False
    is_placeholder: bool = False
    """The pod only proves that there is capacity for one more worker."""
    ready: bool = False
    ended: bool = False
    """The phase of the pod is Succeeded or Failed: no container runs any more, and its resources are free."""
    outlived: bool = False
    """The worker has ended, but an ordinary sidecar has not, so the pod does not end by itself."""
    deletion_deadline: datetime | None = None
    """End of the grace period of a pod that is being deleted; None for any other pod."""
    disrupted: bool = False
    """The cluster removes the pod (eviction, preemption, node shutdown), so its program is not at fault."""
    rejected: bool = False
    """The kubelet refused to run the pod on its node, for example because the node has no free CPU any more."""
    node: str | None = None
    container: str = ""
    """Name of the init container that failed; empty if none did, so that the failure is the worker's."""
    exit_code: int | None = None
    reason: str = ""
    """Reason of the container's termination, or of the disruption."""
    termination_message: str = ""
    """Termination message of the container, or the message of the pod."""
    finished_at: datetime | None = None
    blocker: SchedulingBlocker | None = None
    unscheduled: bool = False
    """The pod has no node yet."""
    gated: bool = False
    """A scheduling gate, such as that of a queue, keeps the scheduler from the pod, so that it holds nothing."""
    unseen_since: datetime | None = None
    """Since when the pod exists, if neither a scheduler nor a kubelet has reported anything about it; else None."""
    creating_since: datetime | None = None
    """Since when the kubelet has been preparing the containers: pulling images, mounting volumes; else None."""
    address: str | None = field(default=None, compare=False)
    """IP address of the pod; None before it has one."""
    owner_uid: str | None = field(default=None, compare=False)
    """UID of the job that owns the pod. A label alone, which any user may set, makes no pod the job's."""
    resource_version: int = field(default=0, compare=False)

    @property
    def terminating(self) -> bool:
        """Whether the pod is being deleted."""
        return self.deletion_deadline is not None

    @property
    def active(self) -> bool:
        """Whether the pod holds resources."""
        return not self.ended

    @property
    def ends_by_itself(self) -> bool:
        """Whether all containers that keep the pod alive have ended, so that its kubelet is about to end it."""
        return self.state in (WorkerState.SUCCEEDED, WorkerState.FAILED) and not (
            self.outlived or self.awaiting_restart
        )

    @property
    def accepts_restart(self) -> bool:
        """Whether another attempt can be started inside the pod."""
        alive = self.state is WorkerState.RUNNING or self.awaiting_restart
        return self.has_launcher and alive and not (self.unresponsive or self.disrupted or self.terminating)

    @property
    def trainer_message(self) -> TerminationMessage | None:
        """The decoded termination message of the built-in trainer; None for any other text."""
        if not self.termination_message or self.container:
            return None
        return TerminationMessage.decode(self.termination_message)


@dataclass(frozen=True, slots=True)
class CreationError:
    """Why the API server refused a pod of the last plan: quota, pod security, a name that is in use."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The result of the acceptance of a spec."""

    revision: str | None = None
    """Name of the snapshot, if it was stored."""
    problem: str = ""
    """Why no pod can be created from the spec."""
    refusal: CreationError | None = None
    """Why the API server did not store the snapshot."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a plan depends on."""

    desired_job: TrainingJob
    """The job as the user wants it, with its stored status. While the job is active its spec is the accepted one, with
    the values that the user has given since then to the fields that may change."""
    workers: tuple[WorkerPod, ...]
    """All pods of the job, of every attempt."""
    now: datetime
    progress: Progress | None = None
    """Progress from rank 0's metrics page when it was last read, with step 0 before the first step."""
    creation_error: CreationError | None = None
    progress_interval: timedelta = timedelta(0)
    """Longest time between two writes of progress that changes; 0: every reading is written."""
    changed_fields: tuple[str, ...] = ()
    """Paths of the immutable fields in which the stored spec differs from the accepted one."""
    revision_problem: CreationError | None = None
    """Why it is not known what was accepted: the snapshot is missing, or does not hold what the operator stored."""
    acceptance: Acceptance | None = None
    """The result of an `AcceptSpec`, if this observation follows one."""
    page_problem: str | None = None
    """What is wrong with rank 0's metrics page; None if it can be read and all of it can be used."""


_NUMERIC_LABELS = (constants.LABEL_ATTEMPT, constants.LABEL_INDEX, constants.LABEL_REPLICAS)
MAX_LABEL = 99_999
"""Largest number in a label of a pod: names of pods hold as many digits (`trainyard.resource.job.MAX_NAME`)."""


def job_name_of(pod: Pod) -> str | None:
    """Return the name of the job that a pod belongs to; None for a pod without all labels of a job's pods.

    Any user may set the label with the job's name on a pod of their own.
    """
    labels = pod["metadata"].get("labels") or {}
    for label in _NUMERIC_LABELS:
        text = labels.get(label, "")
        if not text.isdecimal() or len(text) > len(str(MAX_LABEL)):
            return None
    name: str | None = labels.get(constants.LABEL_JOB)
    return name


def observe_pod(pod: Pod) -> WorkerPod:
    """Reduce a pod of a job to a `WorkerPod`.

    Raises:
        KeyError, ValueError: the pod lacks the labels that the operator sets on its pods.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata["labels"]
    containers = read_containers(pod)
    worker = next((c for c in containers if c.is_worker), Container())
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    phase = status.get("phase", "Pending")
    state = _state(phase, worker)
    end = read_end(status, containers, removal_target(conditions))
    scheduled, unscheduled = conditions.get("PodScheduled", {}), _has_no_node(pod, phase)
    return WorkerPod(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(labels[constants.LABEL_ATTEMPT]),
        index=int(labels[constants.LABEL_INDEX]),
        replicas=int(labels[constants.LABEL_REPLICAS]),
        state=state,
        running_attempt=int(labels[constants.LABEL_ATTEMPT]),
        has_launcher=_has_launcher(pod),
        revision=_revision_name(labels),
        is_parameter_server=labels.get(constants.LABEL_ROLE) == constants.ROLE_SERVER,
        is_placeholder=labels.get(constants.LABEL_ROLE) == constants.ROLE_PLACEHOLDER,
        ready=conditions.get("Ready", {}).get("status") == "True",
        ended=phase in ENDED_PHASES,
        outlived=phase not in ENDED_PHASES and any(c.outlives_worker for c in containers),
        # The API server sets it to the time of the deletion request plus the grace period.
        deletion_deadline=_timestamp(metadata.get("deletionTimestamp")),
        disrupted=end.disrupted,
        rejected=end.rejected,
        node=(pod.get("spec") or {}).get("nodeName"),
        container=end.container,
        exit_code=end.exit_code,
        reason=clean_text(end.reason, MAX_REASON),
        termination_message=bounded_message(end.message),
        finished_at=_timestamp(end.finished_at),
        blocker=_blocker(pod, containers, scheduled),
        unscheduled=unscheduled,
        gated=unscheduled and scheduled.get("reason") == "SchedulingGated",
        unseen_since=_timestamp(metadata.get("creationTimestamp")) if unscheduled and not scheduled else None,
        creating_since=_creating_since(phase, worker, scheduled),
        address=_address(status),
        owner_uid=owner_uid(pod),
        resource_version=int(metadata.get("resourceVersion") or 0),
    )


def owner_uid(body: Mapping[str, Any]) -> str | None:
    """Return the UID of the controller that owns an object; None if it has none."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return intern(reference["uid"])  # one string for all pods of a job
    return None


def apply_launcher_state(worker: WorkerPod, state: PodState | None, *, unresponsive: bool) -> WorkerPod:
    """Return a worker pod with the state that its launcher last reported.

    Args:
        worker: the pod as the API server shows it.
        state: the launcher's last answer; None if there was none.
        unresponsive: whether its launcher rejected or did not answer a restart request.
    """
    if state is None:
        return replace(worker, unresponsive=unresponsive)
    worker = replace(worker, unresponsive=unresponsive, running_attempt=state.attempt)
    end = state.exit_info
    # A ready pod has started another attempt since that answer, and a container that exited shows its own end.
    if end is None or worker.ready or worker.state is not WorkerState.RUNNING:
        return worker
    return replace(
        worker,
        state=WorkerState.FAILED,
        awaiting_restart=True,
        exit_code=end.exit_code,
        reason="Error",
        termination_message=end.message.strip(),
        finished_at=end.at,
    )


def _revision_name(labels: Mapping[str, str]) -> str | None:
    """Return the name of the ControllerRevision whose hash a pod has as a label."""
    label = labels.get(constants.LABEL_REVISION)
    return f"{labels[constants.LABEL_JOB]}-{label}" if label else None


def _address(status: Mapping[str, Any]) -> str | None:
    """Return the address of a pod; None if it has none, or one that no pod can have."""
    try:
        address = ip_address(status.get("podIP") or "")
    except ValueError:
        return None
    return None if address.is_link_local or address.is_multicast or address.is_unspecified else str(address)


def _has_launcher(pod: Pod) -> bool:
    """Return whether the worker container of a pod has a port of that name."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    return any(
        port.get("name") == constants.LAUNCHER_PORT_NAME
        for container in containers
        if container["name"] == constants.WORKER_CONTAINER
        for port in container.get("ports") or ()
    )


def _state(phase: str, worker: Container) -> WorkerState:
    """Return the state of the worker container, which a sidecar may outlive; of an evicted pod its phase."""
    if worker.terminated:
        return WorkerState.SUCCEEDED if worker.terminated.get("exitCode") == 0 else WorkerState.FAILED
    if phase in ENDED_PHASES:
        return WorkerState(phase)
    return WorkerState.RUNNING if worker.running else WorkerState.PENDING


def _creating_since(phase: str, worker: Container, scheduled: Mapping[str, Any]) -> datetime | None:
    """Return when the pod got its node, while its kubelet has not started the worker yet; else None."""
    if phase != "Pending" or scheduled.get("status") != "True" or worker.started:
        return None
    return _timestamp(scheduled.get("lastTransitionTime"))


def _has_no_node(pod: Pod, phase: str) -> bool:
    return phase == "Pending" and not (pod.get("spec") or {}).get("nodeName")


def _blocker(pod: Pod, containers: list[Container], scheduled: Mapping[str, Any]) -> SchedulingBlocker | None:
    """Return what keeps a pod from starting, with the fix; None if nothing does."""
    # The kubelet cannot start a container; init containers come first, since the others wait for them.
    for container in containers:
        if (blocker := container_blocker(pod["metadata"]["name"], container)) is not None:
            return blocker
    return node_blocker(pod, scheduled)


def _timestamp(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
