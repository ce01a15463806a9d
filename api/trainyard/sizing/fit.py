"""Comparison of the memory estimate with the memory in the spec."""

from typing import Literal

from pydantic import computed_field

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.resource.devices import counted_devices, device_claims, is_gpu
from trainyard.resource.quantity import parse_bytes
from trainyard.resource.spec import TrainingJobSpec
from trainyard.sizing.memory import Memory, server_memory, staged_bytes
from trainyard.sizing.peak_memory import rank_memory
from trainyard.sizing.process_memory import GPU_BYTES, LAUNCHER_BYTES, RANK_BYTES, host_bytes_of_rank

LIMIT_FIELD = "spec.workers.resources.limits.memory"
GPU_FIELD = "spec.workers.gpuMemory"
SERVER_FIELD = "spec.parameterServer.resources.limits.memory"
SHARED_FIELD = "spec.workers.sharedMemory"


class Fit(ApiModel):
    """Needed and available memory of the worker or GPU that needs the most, or of the parameter server."""

    of: Literal["worker", "gpu", "host", "server"]
    """Owner of the memory. worker: one without GPUs. host: the memory of a worker besides that of its GPUs."""
    field: str
    """Field of the spec that holds the available memory."""
    needed: int
    """Peak memory in bytes."""
    available: int | None = None
    """Available memory in bytes; None if the spec does not say, so that nothing is checked."""
    place: int
    """Place in the pipeline, from 0, of the rank that needs the most memory; 0 for a server."""
    memory: Memory
    """Memory of that rank, or of the server, by what it holds."""
    process: int
    """Memory of its process besides, in bytes."""
    shared: int = 0
    """Bytes of spec.workers.sharedMemory that the copies for checkpoints do not need, in each worker."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fits(self) -> bool | None:
        """Whether the job fits; None if the spec does not say how much memory there is."""
        return None if self.available is None else self.needed <= self.available


def uses_gpus(spec: TrainingJobSpec) -> bool:
    """Return whether the workers have GPUs that the built-in trainer computes on.

    Devices of resource claims are GPUs if the limits name no accelerator.
    """
    limits = spec.workers.resources.limits or {}
    if any(is_gpu(name) and str(number) != "0" for name, number in limits.items()):
        return True
    return bool(device_claims(spec.workers.template.spec)) and not counted_devices(limits)


def _parsed(quantity: str | int | None) -> int | None:
    return None if quantity is None else parse_bytes(quantity)


def fit(spec: TrainingJobSpec, config: RunConfig) -> Fit:
    """Compare the estimate for the workers with the memory in the spec: that of each GPU, or of a worker without GPUs.

    Raises:
        ValueError: the memory in the spec is not a quantity.
    """
    gpu, procs = uses_gpus(spec), spec.procs_per_worker
    by_place = [rank_memory(config, place, gpu) for place in range(config.mesh.pipeline)]
    place = max(range(len(by_place)), key=lambda p: by_place[p].total)
    if gpu:
        process, shared = GPU_BYTES, 0
        needed = by_place[place].total + process
    else:
        process, shared = LAUNCHER_BYTES // procs + host_bytes_of_rank(config, gpu), _reserved(spec, config)
        needed = _fullest_worker([m.total for m in by_place], config.mesh.size, procs) + procs * process + shared
    return Fit(
        of="gpu" if gpu else "worker",
        field=GPU_FIELD if gpu else LIMIT_FIELD,
        needed=needed,
        available=_parsed(spec.workers.gpu_memory if gpu else _memory_limit(spec)),
        place=place,
        memory=by_place[place],
        process=process,
        shared=shared,
    )


def host_fit(spec: TrainingJobSpec, config: RunConfig) -> Fit | None:
    """Compare the estimate for the host memory of workers with GPUs with the spec; None for workers without GPUs.

    It holds the processes, and the copies that asynchronous checkpoints are written from. The prepared data are mapped
    from files, and do not count.

    Raises:
        ValueError: the memory in the spec is not a quantity.
    """
    if not uses_gpus(spec):
        return None
    procs = spec.procs_per_worker
    staged = [staged_bytes(config, place) for place in range(config.mesh.pipeline)]
    place = staged.index(max(staged))
    process, shared = LAUNCHER_BYTES // procs + host_bytes_of_rank(config, gpu=True), _reserved(spec, config)
    nothing = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits", "buffers"), 0)
    return Fit(
        of="host",
        field=LIMIT_FIELD,
        needed=_fullest_worker(staged, config.mesh.size, procs) + procs * process + shared,
        available=_parsed(_memory_limit(spec)),
        place=place,
        memory=Memory(moment="a checkpoint is written", checkpoint=staged[place], **nothing),
        process=process,
        shared=shared,
    )


def server_fit(spec: TrainingJobSpec, config: RunConfig) -> Fit | None:
    """Compare the estimate for the parameter server with the memory in the spec; None without such a server.

    Raises:
        ValueError: the memory in the spec is not a quantity.
    """
    if not config.servers:
        return None
    limits = (spec.parameter_server.resources.limits if spec.parameter_server is not None else None) or {}
    memory, process = server_memory(config), LAUNCHER_BYTES + RANK_BYTES
    return Fit(
        of="server",
        field=SERVER_FIELD,
        needed=memory.total + process,
        available=_parsed(limits.get("memory")),
        place=0,
        memory=memory,
        process=process,
    )


def shared_memory_bytes(config: RunConfig, procs: int) -> int:
    """Return the bytes of /dev/shm that the copies for asynchronous checkpoints fill in the fullest worker."""
    staged = [staged_bytes(config, place) for place in range(config.mesh.pipeline)]
    return _fullest_worker(staged, config.mesh.size, procs)


def _reserved(spec: TrainingJobSpec, config: RunConfig) -> int:
    """Return the bytes of spec.workers.sharedMemory besides what the copies for asynchronous checkpoints need."""
    size = _parsed(spec.workers.shared_memory)
    return 0 if size is None else max(0, size - shared_memory_bytes(config, spec.procs_per_worker))


def _memory_limit(spec: TrainingJobSpec) -> str | int | None:
    return (spec.workers.resources.limits or {}).get("memory")


def _fullest_worker(totals: list[int], ranks: int, procs: int) -> int:
    """Return the largest sum of memory over the ranks of a worker.

    Args:
        totals: bytes of a rank at each place of the pipeline; ranks of one place have consecutive numbers.
        ranks: number of all ranks.
        procs: ranks in each worker.
    """
    each = ranks // len(totals)
    # Workers inside of a place are all alike, so these and the ones at its borders are enough.
    firsts = {r // procs * procs for p in range(len(totals)) for r in (p * each, p * each + procs, (p + 1) * each - 1)}
    return max(
        sum(
            totals[p] * max(0, min(first + procs, (p + 1) * each) - max(first, p * each))
            for p in range(first // each, min(len(totals), (first + procs - 1) // each + 1))
        )
        for first in firsts
        if first < ranks
    )
