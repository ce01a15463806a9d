"""What a LimitRange of the namespace adds to a worker: a memory limit that the user may not know."""

from typing import Any

from trainyard.protocol import constants
from trainyard.resolve import resolve
from trainyard.resource.job import TrainingJob
from trainyard.sizing.advice import memory_problems
from trainyard_operator.manifests.template import Manifest


def added_limit_problem(job: TrainingJob, sent: Manifest, admitted: Manifest) -> str | None:
    """Return why a worker of the built-in trainer does not fit into a memory limit that it was given; None if it fits.

    Args:
        job: the job at its current size.
        sent: the pod as the operator has built it.
        admitted: the same pod as the API server would store it.
    """
    labels = sent["metadata"].get("labels", {})
    if job.spec.trainer is None or labels.get(constants.LABEL_ROLE) != constants.ROLE_WORKER:
        return None
    if _memory_limit(sent) is not None or (added := _memory_limit(admitted)) is None:
        return None
    workers = job.spec.workers
    limits = {**(workers.resources.limits or {}), "memory": added}
    spec = job.spec.replace(workers=workers.replace(resources=workers.resources.replace(limits=limits)))
    config = resolve(job.replace(spec=spec))
    if not (config.family.estimated and config.sizes_known):
        return None
    return next(
        (
            f"a LimitRange of namespace {job.metadata.namespace} limits a worker to {added} of memory, since the job "
            f"sets no limit: {problem}"
            for problem in memory_problems(spec, config)
        ),
        None,
    )


def _memory_limit(pod: Manifest) -> Any:
    """Return the memory limit of the worker container; None if it has none."""
    containers = pod.get("spec", {}).get("containers", ())
    workers = [container for container in containers if container["name"] == constants.WORKER_CONTAINER]
    return next((worker.get("resources", {}).get("limits", {}).get("memory") for worker in workers), None)
