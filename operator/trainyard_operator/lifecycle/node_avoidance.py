"""Nodes on which a rank was slow: the next attempt stays away from them, where that is possible."""

from datetime import timedelta

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import Plan
from trainyard_operator.lifecycle.degradation import straggler_of, tell_straggler
from trainyard_operator.lifecycle.observation import Observation, Worker
from trainyard_operator.lifecycle.restart import restart
from trainyard_operator.lifecycle.status_builder import Draft

NEEDED_AFTER = timedelta(seconds=60)
"""How long a group that cannot be scheduled does without the nodes that it avoids."""
REPLACED_FOR = timedelta(minutes=10)
"""How long a group that was started anew without a slow node runs before the next one: a restart costs more than a slow
rank does in a while, and where nodes are not alike there is always a slowest one."""


def replace_straggler(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan | None:
    """Start anew without the node of a slow rank, if the user wants that and the node was not avoided before."""
    if draft.status.slow_nodes and _runs_for(draft) < REPLACED_FOR:
        return None
    health, read = draft.job.spec.health, seen.progress
    wanted = health is not None and health.straggler is not None and health.straggler.action == "Replace"
    if not wanted or draft.status.slow_nodes_readmitted or read is None or read.attempt != draft.status.attempt:
        return None
    worker, why = straggler_of(draft.job, read, workers), tell_straggler(draft, read, workers)
    if worker is None or worker.node is None or why is None or worker.node in draft.status.slow_nodes:
        return None
    draft.update(slow_nodes=(*draft.status.slow_nodes, worker.node))
    return restart(draft, Reason.STRAGGLER, why, counts=False)


def use_slow_nodes(draft: Draft, workers: tuple[Worker, ...]) -> Plan | None:
    """Take the slow nodes back, if without them there is no room."""
    stuck = any(w.obstacle is not None and w.obstacle.reason is Reason.UNSCHEDULABLE for w in workers)
    if not stuck or not draft.status.avoided_nodes or _runs_for(draft) < NEEDED_AFTER:
        return None
    nodes = ", ".join(draft.status.slow_nodes)
    draft.update(slow_nodes_readmitted=True)
    return restart(draft, Reason.UNSCHEDULABLE, f"there is no room without node {nodes}, slow as it was", counts=False)


def _runs_for(draft: Draft) -> timedelta:
    """How long the group has been running, or has not."""
    running = draft.status.condition(C.RUNNING)
    return draft.now - running.last_transition_time if running else timedelta(0)
