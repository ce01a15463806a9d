"""Comparison of the memory estimate with the memory in the spec, and changes that make a job fit."""

from collections.abc import Iterator
from typing import Literal

from pydantic import computed_field

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.mesh import Mesh
from trainyard.resource.quantity import format_bytes, parse_bytes
from trainyard.resource.spec import GPU_RESOURCE, TrainingJobSpec
from trainyard.sizing.memory import Memory, server_memory
from trainyard.sizing.peak_memory import rank_memory

MiB = 2**20
LAUNCHER_BYTES = 390 * MiB
"""CPU: a worker's launcher with torch 2.15 imported, whose memory the ranks forked from it share. Measured as the
proportional set sizes of anonymous memory (Pss_Anon) of a worker's processes with 1, 2 and 4 ranks; memory mapped from
files does not count, since the kernel reclaims it before it kills a container for its limit."""
PROCESS_BYTES = 40 * MiB
"""CPU: memory that each rank adds to that besides its training, measured likewise."""
GPU_PROCESS_BYTES = 1536 * MiB
"""GPU: CUDA's context, libraries and the buffers of NCCL. A round number: it depends on the GPU and the number of
process groups."""

LIMIT_FIELD = "spec.workers.resources.limits.memory"
GPU_FIELD = "spec.workers.gpuMemory"
SERVER_FIELD = "spec.parameterServer.resources.limits.memory"


class Fit(ApiModel):
    """Needed and available memory of the worker (CPU) or GPU that needs the most, or of the parameter server."""

    of: Literal["worker", "gpu", "server"]
    """Owner of the memory."""
    field: str
    """Field of the spec that holds the available memory."""
    needed: int
    """Peak memory in bytes."""
    available: int | None
    """Available memory in bytes; None if the spec does not say, so that nothing is checked."""
    place: int
    """Place in the pipeline, from 0, of the rank that needs the most memory; 0 for a server."""
    memory: Memory
    """Memory of that rank, or of the server, by what it holds."""
    process: int
    """Memory of its process besides, in bytes."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fits(self) -> bool | None:
        """Whether the job fits; None if the spec does not say how much memory there is."""
        return None if self.available is None else self.needed <= self.available


def uses_gpus(spec: TrainingJobSpec) -> bool:
    """Return whether the workers have GPUs."""
    limit = (spec.workers.resources.limits or {}).get(GPU_RESOURCE, 0)
    return str(limit) != "0"


def _given(spec: TrainingJobSpec) -> int | None:
    """Return the bytes of each GPU, or of each worker on CPUs, according to the spec."""
    limits = spec.workers.resources.limits or {}
    given = spec.workers.gpu_memory if uses_gpus(spec) else limits.get("memory")
    return None if given is None else parse_bytes(given)


def fit(spec: TrainingJobSpec, config: RunConfig) -> Fit:
    """Compare the estimate for the workers with the memory in the spec.

    Raises:
        ValueError: the memory in the spec is not a quantity.
    """
    gpu, procs, given = uses_gpus(spec), spec.procs_per_worker, _given(spec)
    by_place = [rank_memory(config, place, gpu) for place in range(config.mesh.pipeline)]
    place = max(range(len(by_place)), key=lambda p: by_place[p].total)
    process = GPU_PROCESS_BYTES if gpu else LAUNCHER_BYTES // procs + PROCESS_BYTES
    if gpu:
        needed = by_place[place].total + process
    else:
        needed = _fullest_worker([m.total for m in by_place], config.mesh.size, procs) + procs * process
    return Fit(
        of="gpu" if gpu else "worker",
        field=GPU_FIELD if gpu else LIMIT_FIELD,
        needed=needed,
        available=given,
        place=place,
        memory=by_place[place],
        process=process,
    )


def server_fit(spec: TrainingJobSpec, config: RunConfig) -> Fit | None:
    """Compare the estimate for the parameter server with the memory in the spec; None without such a server.

    Raises:
        ValueError: the memory in the spec is not a quantity.
    """
    if not config.servers:
        return None
    limits = (spec.parameter_server.resources.limits if spec.parameter_server is not None else None) or {}
    given, memory, process = limits.get("memory"), server_memory(config), LAUNCHER_BYTES + PROCESS_BYTES
    return Fit(
        of="server",
        field=SERVER_FIELD,
        needed=memory.total + process,
        available=None if given is None else parse_bytes(given),
        place=0,
        memory=memory,
        process=process,
    )


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


def memory_problems(spec: TrainingJobSpec, config: RunConfig) -> list[str]:
    """Return why the job does not fit, with the field, the needed memory and a change that helps; empty if it may fit.

    The estimate is compared without a margin, so that a job is refused only if it certainly does not fit.
    """
    return [problem for problem in (_worker_problem(spec, config), _server_problem(spec, config)) if problem]


def _worker_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        given = _given(spec)
    except ValueError as error:
        return f"{LIMIT_FIELD}: {error}"
    if given is None:
        return None
    worker_fit = fit(spec, config)
    if worker_fit.fits:
        return None
    owner = "each GPU" if worker_fit.of == "gpu" else "a worker"
    return f"{_shortage(worker_fit, owner, 'per rank: ')}; {_advice(spec, config, given)}"


def _server_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        of_server = server_fit(spec, config)
    except ValueError as error:
        return f"{SERVER_FIELD}: {error}"
    if of_server is None or of_server.fits is not False:
        return None
    return (
        f"{_shortage(of_server, 'the parameter server')}; give it more memory, or set "
        "spec.parallelism.data.mode: fsdp, which has no server"
    )


def _shortage(found: Fit, owner: str, of: str = "") -> str:
    assert found.available is not None
    parts = sorted(found.memory.parts.items(), key=lambda part: -part[1])
    words = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts[:3])
    return (
        f"{found.field}: {owner} has {format_bytes(found.available)} but needs about {format_bytes(found.needed)} "
        f"({of}{words})"
    )


def _advice(spec: TrainingJobSpec, config: RunConfig, available: int) -> str:
    """Return the first change with which the estimate fits, else general advice."""
    for words, changed in _changes(config):
        needed = fit(spec, changed).needed
        if needed <= available:
            return f"set {words} (then about {format_bytes(needed)}), or give more memory"
    return (
        "give more memory, or use more workers with spec.parallelism.data.mode: fsdp and a larger "
        f"spec.parallelism.{_split_axis(config)} or pipeline.stages"
    )


def _split_axis(config: RunConfig) -> Literal["expert", "tensor"]:
    """Return the axis that divides the matrices of the blocks: experts, if there are any."""
    return "expert" if "expert" in config.family.supports else "tensor"


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yield configurations of the same model and ranks that need less memory, the cheaper ones first."""
    micro = "spec.trainer.batch.micro: 1"
    sharded = config
    if config.micro_batch > 1:
        yield micro, config.replace(micro_batch=1)
    # Nothing else helps a model without blocks.
    if not config.family.layers(config.model):
        return
    full, recomputed = "spec.trainer.activationCheckpointing: full", _recompute(config)
    if recomputed is not config:
        yield full, recomputed
    if config.mesh.replicate > 1:
        mode = "spec.parallelism.data.mode: fsdp"
        sharded = config.replace(servers=0, mesh=_fully_sharded(config.mesh))
        yield mode, sharded
        if recomputed is not config:
            yield f"{mode} and {full}", _recompute(sharded)
        yield f"{mode}, {full} and {micro}", _recompute(sharded).replace(micro_batch=1)
    elif config.micro_batch > 1 and recomputed is not config:
        yield f"{full} and {micro}", recomputed.replace(micro_batch=1)
    if sharded.mesh.shard > 1 and sharded.mesh.pipeline == 1 and config.accumulation > 1:
        # Gradients are not sharded until the last micro-batch, so a single micro-batch can need less than many.
        share = config.micro_batch * config.accumulation
        single = _recompute(sharded).replace(micro_batch=share)
        yield f"spec.parallelism.data.mode: fsdp, {full} and spec.trainer.batch.micro: {share}", single
    split = _with_experts if _split_axis(config) == "expert" else _with_tensor
    yield from split(_recompute(sharded).replace(micro_batch=1), f"{full} and {micro}")


def _fully_sharded(mesh: Mesh) -> Mesh:
    return mesh.replace(replicate=1, shard=mesh.replicate * mesh.shard)


def _recompute(config: RunConfig) -> RunConfig:
    trainer = config.trainer
    if trainer.activation_checkpointing == "full":
        return config
    return config.replace(trainer=trainer.replace(activation_checkpointing="full"))


def _with_tensor(config: RunConfig, others: str) -> Iterator[tuple[str, RunConfig]]:
    """Yield the configuration with matrices divided among some of the ranks that shard the data."""
    mesh = config.mesh
    for tensor in (2, 4, 8):
        divides = config.family.divides_evenly(config.model, tensor=tensor, context=mesh.context)
        if mesh.tensor == 1 and divides and mesh.data % tensor == 0:
            smaller = mesh.replace(tensor=tensor, shard=mesh.data // tensor, replicate=1)
            yield (
                f"spec.parallelism: {{data: {{mode: fsdp}}, tensor: {tensor}}}, {others}",
                config.replace(mesh=smaller),
            )


def _with_experts(config: RunConfig, others: str) -> Iterator[tuple[str, RunConfig]]:
    """Yield the configuration with experts divided among more of the ranks that shard the data."""
    mesh = config.mesh
    for expert in (2, 4, 8):
        divides = config.family.divides_evenly(config.model, context=mesh.context, expert=expert)
        if expert > mesh.expert and divides and mesh.data % expert == 0:
            spread = mesh.replace(expert=expert, shard=mesh.data // expert, replicate=1)
            words = f"spec.parallelism: {{data: {{mode: fsdp}}, expert: {expert}}}, {others}"
            yield words, config.replace(mesh=spread, servers=0)
