"""What keeps a pod from getting a node: the scheduler finds none, or a queue has not admitted its group."""

from collections.abc import Mapping
from typing import Any

from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.containers import SchedulingBlocker

KUEUE_GATE = "kueue.x-k8s.io/admission"
"""Scheduling gate that Kueue removes once there is quota."""
KUEUE_MANAGED_LABEL = "kueue.x-k8s.io/managed"
"""Label that the webhook of Kueue sets on the pods that Kueue manages."""
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE_GROUP_LABEL = "kueue.x-k8s.io/pod-group-name"


def node_blocker(pod: Mapping[str, Any], scheduled: Mapping[str, Any]) -> SchedulingBlocker | None:
    """Return what keeps a pod from getting a node, with the fix; None if nothing does.

    `scheduled` is its condition PodScheduled; empty without one.
    """
    if scheduled.get("status") != "False":
        return None
    name, reason = pod["metadata"]["name"], scheduled.get("reason")
    if reason == "SchedulingGated":
        return _gate_blocker(pod, name)
    # The scheduler finds no node, or does not understand what it is asked for.
    if reason in ("Unschedulable", "SchedulerError"):
        fix = "check spec.workers.resources and spec.workers.template, or add nodes"
        message = f"pod {name}: cannot be scheduled: {scheduled.get('message', '')} {fix}"
        return SchedulingBlocker(Reason.UNSCHEDULABLE, message)
    return None


def _gate_blocker(pod: Mapping[str, Any], name: str) -> SchedulingBlocker:
    """Return what the scheduling gates of a pod mean, which keep the scheduler from looking at it."""
    labels = pod["metadata"].get("labels") or {}
    gates = [gate.get("name") for gate in (pod.get("spec") or {}).get("schedulingGates") or ()]
    # A gate of another controller.
    if KUEUE_QUEUE_LABEL not in labels or (gates and KUEUE_GATE not in gates):
        names = f" ({', '.join(map(str, gates))})" if gates else ""
        return SchedulingBlocker(Reason.QUEUED, f"pod {name}: its scheduling gates{names} have not been removed yet")
    queue, group = labels[KUEUE_QUEUE_LABEL], labels.get(KUEUE_GROUP_LABEL, "")
    # Kueue manages the pod, so it admits the group once there is quota.
    if labels.get(KUEUE_MANAGED_LABEL) == "true":
        message = (
            f"pod {name}: waits in the queue {queue} (spec.scheduling.queue) until Kueue admits its group; see: "
            f"kubectl describe workload {group}"
        )
        return SchedulingBlocker(Reason.QUEUED, message)
    # The webhook of Kueue has not seen the pod when it was created.
    message = (
        f"pod {name}: waits for Kueue (spec.scheduling.queue: {queue}), which does not manage it; install Kueue with "
        "its integration pod, let its managedJobsNamespaceSelector include the namespace, and delete the pod; or set "
        "suspend: true and remove the queue"
    )
    return SchedulingBlocker(Reason.QUEUE_UNAVAILABLE, message)
