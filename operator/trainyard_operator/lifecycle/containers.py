"""The containers of a pod as its kubelet reports them: init containers, the worker, and sidecars."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainyard.protocol import constants
from trainyard.resource.status import Reason
from trainyard_operator.pod_input.text import clean_text

_IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_MAX_DETAIL = 1000
"""Longest message of the kubelet that is kept, in characters."""
_NO_PROGRAM = re.compile(
    r"no command specified"
    r"|\bexec(utable file)?\b.*(not found|no such file|permission denied|is a directory|format error)"
    # How `trainyard run` reports it: the program and the error of the operating system.
    r"|^[^:]+: (no such file or directory|permission denied|exec format error|is a directory|not a directory)$",
    re.IGNORECASE,
)
"""Message of a container runtime about a command that does not exist in the image, or cannot be executed."""


MAX_BLOCKER = 2048


@dataclass(frozen=True, slots=True)
class SchedulingBlocker:
    """Why a pod does not start, as reported by the scheduler or the kubelet."""

    reason: Reason
    message: str
    """In one line of at most `MAX_BLOCKER` characters: it may quote an image name of any length."""
    permanent: str = ""
    """Reason of the failure, if no retry can start the pod (InvalidImageName); empty for what may pass."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", clean_text(self.message, MAX_BLOCKER))


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod; the defaults are those of a container that the kubelet has not reported yet."""

    name: str = ""
    image: str = ""
    is_worker: bool = False
    is_init: bool = False
    """It must end before the worker starts."""
    is_native_sidecar: bool = False
    """An init container with restartPolicy Always: the kubelet restarts it, and ends it after the worker."""
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def terminated(self) -> Mapping[str, Any]:
        """Exit code, reason and message of a container that has ended; empty for any other."""
        return self.state.get("terminated") or {}

    @property
    def running(self) -> bool:
        """Whether the container runs."""
        return self.state.get("running") is not None

    @property
    def started(self) -> bool:
        """Whether the container runs or has ended."""
        return self.running or bool(self.terminated)

    @property
    def waiting(self) -> Mapping[str, Any]:
        """Reason and message of a container that has not started; empty for any other."""
        return self.state.get("waiting") or {}

    @property
    def outlives_worker(self) -> bool:
        """Whether the container keeps the pod alive when the worker has ended."""
        return not (self.is_worker or self.is_init or self.is_native_sidecar or self.terminated)

    @property
    def has_failed_as_init(self) -> bool:
        """Whether it is an init container that has failed, so that the pod never starts its worker."""
        return self.is_init and self.terminated.get("exitCode", 0) != 0


def read_containers(pod: Mapping[str, Any]) -> list[Container]:
    """Return the containers of a pod that its kubelet has reported: init containers first, then the others.

    Ephemeral containers are left out: they neither start a pod nor keep it alive.
    """
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    native = {c.get("name") for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    found = [
        Container(
            name=c["name"],
            image=c.get("image") or "",
            is_init=c["name"] not in native,
            is_native_sidecar=c["name"] in native,
            state=c.get("state") or {},
        )
        for c in status.get("initContainerStatuses") or ()
    ]
    return found + [
        Container(
            name=c["name"],
            image=c.get("image") or "",
            is_worker=c["name"] == constants.WORKER_CONTAINER,
            state=c.get("state") or {},
        )
        for c in status.get("containerStatuses") or ()
    ]


def container_blocker(pod: str, container: Container) -> SchedulingBlocker | None:
    """Return what keeps a container from starting, with the fix; None if nothing does."""
    reason = container.waiting.get("reason") or ""
    detail = clean_text(container.waiting.get("message") or reason, _MAX_DETAIL)
    subject = f"pod {pod}" if container.is_worker else f"pod {pod}, container {container.name}"
    # The kubelet cannot pull the image.
    if reason in _IMAGE_REASONS:
        source = "spec.image" if container.is_worker else "its image in spec.workers.template"
        fix = f"check {source}, spec.imagePullSecrets and the registry"
        message = f"{subject}: cannot pull image {clean_text(container.image, _MAX_DETAIL)}: {detail}; {fix}"
        return SchedulingBlocker(
            Reason.IMAGE_PULL_FAILED, message, permanent=reason if reason == "InvalidImageName" else ""
        )
    # The kubelet cannot create the container.
    if reason in _CONFIG_REASONS:
        source = "spec.env, spec.command and spec.workers.template" if container.is_worker else "spec.workers.template"
        message = f"{subject}: container cannot be created: {detail}; check {source}"
        permanent = "StartError" if names_no_program(detail) else ""
        return SchedulingBlocker(Reason.CONTAINER_CONFIG, message, permanent)
    # A native sidecar exits again and again, and the worker waits for it.
    if reason == "CrashLoopBackOff":
        message = f"{subject}: exits again and again: {detail}; see its log, and check spec.workers.template"
        return SchedulingBlocker(Reason.CRASH_LOOP, message)
    return None


def names_no_program(message: str) -> bool:
    """Return whether a message of the container runtime says that there is no such program: no retry can start it."""
    return _NO_PROGRAM.search(message) is not None
