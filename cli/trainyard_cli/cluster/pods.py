"""Pods of a job: which one holds a rank, which one failed, and their states."""

from typing import Any

from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Body
from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.exit_codes import EXIT_BAD_INPUT


def pod_of_rank(job: TrainingJob, rank: int) -> str:
    """Return the name of the pod that holds a rank of the current attempt.

    Raises:
        ClusterError: the job has no such rank, or no attempt yet.
    """
    spec = job.effective_job.spec
    last = spec.world_size + spec.servers - 1
    if rank > last:
        raise ClusterError(f"--rank: {job.metadata.name} has the ranks 0 to {last}; choose one", EXIT_BAD_INPUT)
    if job.status.attempt == 0:
        raise ClusterError(f"{job.metadata.name} has no pods yet; see: trainyard status {job.metadata.name}")
    index = spec.workers.replicas if rank >= spec.world_size else rank // spec.procs_per_worker
    return job.effective_job.pod_name(job.status.pod_attempt, index)


def pod_state(pod: Body) -> tuple[str, str, str]:
    """Return name, node and state of a pod."""
    status: dict[str, Any] = pod.get("status") or {}
    state = "Terminating" if "deletionTimestamp" in pod["metadata"] else status.get("phase", "")
    return pod["metadata"]["name"], pod["spec"].get("nodeName", ""), state
