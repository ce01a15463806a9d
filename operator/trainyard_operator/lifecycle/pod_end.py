"""How a pod ended: its program ended, an init container failed, the cluster took it, or its node refused it.

The reasons are those of the kubelet (admission handlers, eviction manager, node shutdown) and of the controllers that
delete pods.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard_operator.lifecycle.containers import Container
from trainyard_operator.pod_input.text import clean_text

ENDED_PHASES = ("Succeeded", "Failed")
"""Phases of a pod without a running container: it holds no resources."""

_DISRUPTIONS = frozenset({"Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting"})
"""Reasons of pods that the cluster removes."""
_REJECTIONS = frozenset(
    {
        "AppArmor",
        "InvalidNodeInfo",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "NodeUnschedulable",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SMTAlignmentError",
        "SysctlForbidden",
        "TaintToleration",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "UnexpectedPredicateFailureType",
    }
)
"""Reasons of pods that a kubelet refuses to run. OutOfcpu, OutOfpods, OutOfnvidia.com/gpu ... are more of them."""
_OWN_LIMIT = re.compile(
    r"^(usage of emptydir volume .* exceeds the limit"
    r"|pod ephemeral local storage usage exceeds the total limit"
    r"|container .* exceeded its local ephemeral storage limit)",
    re.IGNORECASE,
)
"""Messages of the kubelet's eviction manager about a pod that used more storage than its own spec allows."""
_MAX_INIT_MESSAGE = 1000
"""Longest message of an init container that is kept, in characters."""


@dataclass(frozen=True, slots=True)
class PodEnd:
    """How a pod ended, or why it is about to be removed; the defaults are those of a pod that runs."""

    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    finished_at: str | None = None
    container: str = ""
    """Name of the init container that failed; empty if none did."""
    disrupted: bool = False
    """The cluster removed the pod, so its program is not the cause."""
    rejected: bool = False
    """The kubelet refused to run the pod on its node."""


def removal_target(conditions: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the condition that announces that a pod is removed; empty without one.

    The cluster sets DisruptionTarget. Kueue sets TerminationTarget on the pods of a group that it preempts or evicts.
    """
    found = (conditions.get(kind, {}) for kind in ("DisruptionTarget", "TerminationTarget"))
    return next((condition for condition in found if condition.get("status") == "True"), {})


def read_end(status: Mapping[str, Any], containers: Sequence[Container], target: Mapping[str, Any]) -> PodEnd:
    """Return how a pod ended.

    Args:
        status: status of the pod.
        containers: its containers.
        target: the condition that announced its removal (`removal_target`); empty without one.
    """
    worker = next((c for c in containers if c.is_worker), Container())
    ended, phase = worker.terminated, status.get("phase")
    exit_code, finished_at = ended.get("exitCode"), ended.get("finishedAt")
    reason, message = status.get("reason") or "", status.get("message") or ""
    program = PodEnd(ended.get("reason") or reason, ended.get("message") or message, exit_code, finished_at)
    # A worker that has succeeded has succeeded, whatever happens to its pod afterwards.
    if exit_code == 0 or (phase == "Succeeded" and not ended):
        return program
    # The pod used more storage than its own spec allows: the program's failure, although the kubelet evicts it.
    if reason == "Evicted" and _OWN_LIMIT.search(message):
        return PodEnd("StorageLimitExceeded", message, exit_code, finished_at)
    # The condition says why the cluster removes the pod; the container only shows how it was killed.
    if target.get("status") == "True":
        reason, message = reason or target.get("reason") or "", message or target.get("message") or ""
        return PodEnd(reason, message, exit_code, finished_at, disrupted=True)
    # The kubelet refused to run the pod: no container was ever started.
    if phase == "Failed" and _is_rejection(reason, message) and not any(c.started for c in containers):
        return PodEnd(reason, message, disrupted=True, rejected=True)
    # The cluster removed the pod, or the kubelet has lost track of the container, as after a crash of its node.
    if reason in _DISRUPTIONS | _REJECTIONS or ended.get("reason") == "ContainerStatusUnknown":
        return PodEnd(program.reason, program.message, exit_code, finished_at, disrupted=True)
    # An init container failed, so the worker was never started.
    failed = next((c for c in containers if c.has_failed_as_init), None)
    if phase == "Failed" and not worker.started and failed is not None:
        return _init_failure(failed)
    return program


def _is_rejection(reason: str, message: str) -> bool:
    return reason in _REJECTIONS or reason.startswith("OutOf") or message.startswith("Pod was rejected")


def _init_failure(container: Container) -> PodEnd:
    """Return the end of a pod whose init container failed."""
    ended = container.terminated
    reason, message = ended.get("reason") or "Error", clean_text(ended.get("message") or "", _MAX_INIT_MESSAGE)
    return PodEnd(
        "InitContainerFailed" if reason == "Error" else reason,
        message or f"init container {container.name} failed; see its log",
        ended.get("exitCode"),
        ended.get("finishedAt"),
        container.name,
    )
