"""Nodes on which a rank was slow: the next attempt stays away from them, where that is possible."""

from datetime import timedelta

from trainyard.status import ConditionType as C
from trainyard.status import Reason
from trainyard_operator.core.actions import Plan
from trainyard_operator.core.draft import Draft
from trainyard_operator.core.mishaps import straggler_of, tell_straggler
from trainyard_operator.core.observe import Observation, Worker
from trainyard_operator.core.restart import restart

NEEDED_AFTER = timedelta(seconds=60)
"""How long a group that cannot be scheduled does without the nodes that it avoids."""


def replace_straggler(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan | None:
    """Start anew without the node of a slow rank, if the user wants that and the node was not avoided before."""
    health, read = draft.job.spec.health, seen.progress
    wanted = health is not None and health.straggler is not None and health.straggler.action == "Replace"
    if not wanted or draft.status.slow_nodes_needed or read is None or read.attempt != draft.status.attempt:
        return None
    worker, why = straggler_of(draft.job, read, workers), tell_straggler(draft, read, workers)
    if worker is None or worker.node is None or why is None or worker.node in draft.status.slow_nodes:
        return None
    draft.update(slow_nodes=(*draft.status.slow_nodes, worker.node))
    return restart(draft, Reason.STRAGGLER, why, counts=False)


def use_slow_nodes(draft: Draft, workers: tuple[Worker, ...]) -> Plan | None:
    """Take the slow nodes back, if without them there is no room."""
    running = draft.status.condition(C.RUNNING)
    stuck = any(w.obstacle is not None and w.obstacle.reason is Reason.UNSCHEDULABLE for w in workers)
    if not stuck or not avoids(draft) or running is None:
        return None
    if draft.now - running.last_transition_time < NEEDED_AFTER:
        return None
    nodes = ", ".join(draft.status.slow_nodes)
    draft.update(slow_nodes_needed=True)
    return restart(draft, Reason.UNSCHEDULABLE, f"there is no room without node {nodes}, slow as it was", counts=False)


def avoids(draft: Draft) -> bool:
    """Whether the pods of the current attempt stay away from some nodes."""
    return bool(draft.status.slow_nodes) and not draft.status.slow_nodes_needed
