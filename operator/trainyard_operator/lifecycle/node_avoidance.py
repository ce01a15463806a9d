"""Avoidance of slow, refusing and faulty nodes: the next attempt is scheduled on others, where that is possible."""

from datetime import timedelta

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import Plan
from trainyard_operator.lifecycle.degradation import find_straggler, straggler_message
from trainyard_operator.lifecycle.observation import Observation, WorkerPod
from trainyard_operator.lifecycle.restart import restart
from trainyard_operator.lifecycle.status_builder import StatusBuilder

READMIT_AFTER = timedelta(seconds=60)
"""How long an unschedulable group waits before it uses the avoided nodes again."""
REPLACEMENT_INTERVAL = timedelta(minutes=10)
"""Shortest time that a group runs between two replacements of slow nodes: a restart costs more than a slow rank does
within that time, and on nodes that differ there is always a slowest one."""


def replace_straggler(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> Plan | None:
    """Return a restart that avoids the node of a slow rank; None if none is needed or wanted."""
    health, progress = builder.effective_job.spec.health, observation.progress
    # The user wants stragglers to be reported only, which is the default.
    if health is None or health.straggler is None or health.straggler.action != "Replace":
        return None
    # A node was replaced not long ago, or the slow nodes turned out to be indispensable.
    if builder.slow_nodes and (_time_in_state(builder) < REPLACEMENT_INTERVAL or builder.slow_nodes_readmitted):
        return None
    # There is no measurement of the current attempt.
    if progress is None or progress.attempt != builder.attempt:
        return None
    worker = find_straggler(builder.effective_job, progress, workers)
    message = straggler_message(builder.effective_job, progress, workers)
    # No rank is slow, or its node is unknown or avoided already.
    if worker is None or worker.node is None or message is None or worker.node in builder.slow_nodes:
        return None
    builder.slow_nodes = (*builder.slow_nodes, worker.node)
    return restart(builder, Reason.STRAGGLER, message, counts=False)


def readmit_nodes(builder: StatusBuilder, workers: tuple[WorkerPod, ...]) -> Plan | None:
    """Return a restart that may use avoided nodes again; None unless the group is unschedulable without them."""
    unschedulable = any(w.blocker is not None and w.blocker.reason is Reason.UNSCHEDULABLE for w in workers)
    # The pods can be scheduled, no node is avoided, or the group has not waited long enough.
    if not unschedulable or not builder.avoided_nodes or _time_in_state(builder) < READMIT_AFTER:
        return None
    # Nodes that refused a pod may accept it by now.
    if builder.refusing_nodes:
        nodes = ", ".join(builder.refusing_nodes)
        builder.refusing_nodes = ()
        cause = f"the group cannot be scheduled without the nodes that refused its pods: {nodes}"
        return restart(builder, Reason.UNSCHEDULABLE, cause, counts=False)
    # A slow node is better than a broken one.
    if builder.slow_nodes and not builder.slow_nodes_readmitted:
        nodes = ", ".join(builder.slow_nodes)
        builder.slow_nodes_readmitted = True
        cause = f"the group cannot be scheduled without the slow nodes: {nodes}"
        return restart(builder, Reason.UNSCHEDULABLE, cause, counts=False)
    # The GPU may have been repaired by now, or another one of the node may be free.
    nodes = ", ".join(builder.faulty_nodes)
    builder.faulty_nodes = ()
    cause = f"the group cannot be scheduled without the nodes on which a GPU failed: {nodes}"
    return restart(builder, Reason.UNSCHEDULABLE, cause, counts=False)


def _time_in_state(builder: StatusBuilder) -> timedelta:
    """Return how long the condition Running has had its current status; 0 if it was never set."""
    running = builder.condition(C.RUNNING)
    return builder.now - running.last_transition_time if running else timedelta(0)
