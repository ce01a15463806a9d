"""The volume at /dev/shm of a pod: memory that NCCL, data loaders and asynchronous checkpoints share."""

import math

from trainyard.resolve import resolve
from trainyard.resource.job import TrainingJob
from trainyard.sizing.fit import shared_memory_bytes
from trainyard_operator.manifests.merge import mounts_at
from trainyard_operator.manifests.template import VOLUME_PREFIX, Manifest, Template, TemplateError

SHARED_MEMORY_GIB = 64
"""Size of /dev/shm per rank in GiB, for workers without a memory limit, unless asynchronous checkpoints need more."""
OTHER_SHARED_MEMORY_GIB = 4
"""Size in GiB for all else that is in /dev/shm, such as the buffers of NCCL, if checkpoints need most of it."""

SHARED_MEMORY_PATH = "/dev/shm"
SHARED_MEMORY_VOLUME = f"{VOLUME_PREFIX}shm"


def build_shared_memory(job: TrainingJob, index: int, template: Template, resources: Manifest) -> Manifest:
    """Return the volume for /dev/shm, as large as the worker's memory limit, since it is charged to that limit.

    Without a limit it is bounded by the number of ranks, or by what the copies of their state for asynchronous
    checkpoints need, so that it cannot use up the memory of a node. spec.workers.sharedMemory sets another size.

    Args:
        job: the job at its current size.
        index: node rank of the pod in its group.
        template: the user's template of the pod.
        resources: resources of the worker container.

    Raises:
        TemplateError: the template has a volume of its own there, and spec.workers.sharedMemory is set as well.
    """
    serves = job.spec.is_parameter_server(index)
    given = None if serves else job.spec.workers.shared_memory
    if given is not None and mounts_at(template, SHARED_MEMORY_PATH):
        raise TemplateError(
            f"{template.worker_field}.volumeMounts: the volume at {SHARED_MEMORY_PATH} replaces that of "
            "spec.workers.sharedMemory; remove one of them"
        )
    ranks = 1 if serves else job.spec.procs_per_worker
    limit = resources.get("limits", {}).get("memory")
    size = given or limit or f"{max(SHARED_MEMORY_GIB * ranks, _copies_gib(job))}Gi"
    return {"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def _copies_gib(job: TrainingJob) -> int:
    """Return the GiB of /dev/shm of a worker with the copies for asynchronous checkpoints; 0 without any."""
    if job.spec.trainer is None or job.spec.checkpoint is None:
        return 0
    copies = shared_memory_bytes(resolve(job), job.spec.procs_per_worker)
    return OTHER_SHARED_MEMORY_GIB + math.ceil(copies / 2**30) if copies else 0
