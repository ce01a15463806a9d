"""Whether a job fits into the memory that it asks for, and if not, what would help."""

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
AGENT_BYTES = 390 * MiB
"""CPU: a worker's agent with torch 2.15 imported, from which its processes are forked and which they share. Measured as
the proportional set sizes (Pss_Anon) of a worker's processes with 1, 2 and 4 ranks; files can be read again, so what
is mapped from them is not what a limit of memory kills for."""
PROCESS_BYTES = 40 * MiB
"""CPU: what each rank adds to that beside its training, measured likewise."""
GPU_PROCESS_BYTES = 1536 * MiB
"""GPU: CUDA's context, libraries and the buffers of NCCL. A round figure: it differs by GPU and number of groups."""

LIMIT_FIELD = "spec.workers.resources.limits.memory"
GPU_FIELD = "spec.workers.gpuMemory"
SERVER_FIELD = "spec.parameterServer.resources.limits.memory"


class Fit(ApiModel):
    """What is needed and what there is: for the worker (CPU) or GPU that needs the most, or the parameter server."""

    of: Literal["worker", "gpu", "server"]
    """Whose memory it is."""
    field: str
    """Where the memory stands in the spec."""
    needed: int
    """Bytes at the peak."""
    available: int | None
    """Bytes; None if the spec does not say, and so nothing is checked."""
    place: int
    """Place in the pipeline of the rank that needs the most; 0 for a server."""
    memory: Memory
    """What that rank, or the server, needs for the training."""
    process: int
    """Bytes of its process besides."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if the spec does not say how much there is."""
        return None if self.available is None else self.needed <= self.available


def uses_gpus(spec: TrainingJobSpec) -> bool:
    """Whether the workers have GPUs."""
    limit = (spec.workers.resources.limits or {}).get(GPU_RESOURCE, 0)
    return str(limit) != "0"


def _given(spec: TrainingJobSpec) -> int | None:
    """Bytes of each GPU, or of each worker on CPUs, as the spec has it."""
    limits = spec.workers.resources.limits or {}
    given = spec.workers.gpu_memory if uses_gpus(spec) else limits.get("memory")
    return None if given is None else parse_bytes(given)


def fit(spec: TrainingJobSpec, config: RunConfig) -> Fit:
    """Compare the estimate with the memory of the spec.

    Raises:
        ValueError: the spec's memory is no quantity.
    """
    gpu, procs, given = uses_gpus(spec), spec.procs_per_worker, _given(spec)
    by_place = [rank_memory(config, place, gpu) for place in range(config.mesh.pipeline)]
    place = max(range(len(by_place)), key=lambda p: by_place[p].total)
    process = GPU_PROCESS_BYTES if gpu else AGENT_BYTES // procs + PROCESS_BYTES
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
    """The same for the pod of the parameter server; None without one.

    Raises:
        ValueError: the spec's memory is no quantity.
    """
    if not config.servers:
        return None
    limits = (spec.parameter_server.resources.limits if spec.parameter_server is not None else None) or {}
    given, memory, process = limits.get("memory"), server_memory(config), AGENT_BYTES + PROCESS_BYTES
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
    """Largest sum over the ranks of a worker. Ranks of one pipeline place, all alike, are numbered in a row."""
    each = ranks // len(totals)
    # A worker inside of one place, or at its border: which others there are, they repeat these.
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
    """Why the job does not fit, with the field, what is needed, and what would help; empty if it fits or nobody knows.

    Only what surely does not fit is refused, so the estimate is taken as it is, without a margin.
    """
    return [problem for problem in (_worker_problem(spec, config), _server_problem(spec, config)) if problem]


def _worker_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        given = _given(spec)
    except ValueError as error:
        return f"{LIMIT_FIELD}: {error}"
    if given is None:
        return None
    found = fit(spec, config)
    if found.fits:
        return None
    whose = "each GPU" if found.of == "gpu" else "a worker"
    return f"{_lack(found, whose, 'per rank: ')}; {_advice(spec, config, given)}"


def _server_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        found = server_fit(spec, config)
    except ValueError as error:
        return f"{SERVER_FIELD}: {error}"
    if found is None or found.fits is not False:
        return None
    return (
        f"{_lack(found, 'the parameter server')}; give it more memory, or set spec.parallelism.data.mode: fsdp, which "
        "has no server"
    )


def _lack(found: Fit, whose: str, of: str = "") -> str:
    assert found.available is not None
    parts = sorted(found.memory.parts.items(), key=lambda part: -part[1])
    words = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts[:3])
    return (
        f"{found.field}: {whose} has {format_bytes(found.available)} but needs about {format_bytes(found.needed)} "
        f"({of}{words})"
    )


def _advice(spec: TrainingJobSpec, config: RunConfig, available: int) -> str:
    """The first change that makes it fit, tried out; else the general ones."""
    for words, changed in _changes(config):
        needed = fit(spec, changed).needed
        if needed <= available:
            return f"set {words} (then about {format_bytes(needed)}), or give more memory"
    return (
        "give more memory, or use more workers with spec.parallelism.data.mode: fsdp and a larger "
        f"spec.parallelism.{'expert' if config.model.name == 'moe' else 'tensor'} or pipeline.stages"
    )


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Other configurations of the same model and ranks that need less, the cheaper ones first."""
    micro = "spec.trainer.batch.micro: 1"
    sharded = config
    if config.micro_batch > 1:
        yield micro, config.replace(micro_batch=1)
    if config.model.name == "mlp":
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
        # Gradients are whole until the last micro-batch, so a single one can need less than many.
        share = config.micro_batch * config.accumulation
        single = _recompute(sharded).replace(micro_batch=share)
        yield f"spec.parallelism.data.mode: fsdp, {full} and spec.trainer.batch.micro: {share}", single
    split = _with_experts if config.model.name == "moe" else _with_tensor
    yield from split(_recompute(sharded).replace(micro_batch=1), f"{full} and {micro}")


def _fully_sharded(mesh: Mesh) -> Mesh:
    return mesh.replace(replicate=1, shard=mesh.replicate * mesh.shard)


def _recompute(config: RunConfig) -> RunConfig:
    trainer = config.trainer
    if trainer.activation_checkpointing == "full":
        return config
    return config.replace(trainer=trainer.replace(activation_checkpointing="full"))


def _with_tensor(config: RunConfig, others: str) -> Iterator[tuple[str, RunConfig]]:
    """The same with matrices split over some of the ranks that shard the data."""
    model, mesh = config.transformer, config.mesh
    for tensor in (2, 4, 8):
        split = tensor * mesh.context
        fits = not any(size % split for size in (model.heads, model.kv_heads, model.sequence_length))
        fits = fits and not (model.ffn_dim % tensor or model.vocab_size % tensor)
        if mesh.tensor == 1 and fits and mesh.data % tensor == 0:
            smaller = mesh.replace(tensor=tensor, shard=mesh.data // tensor, replicate=1)
            yield (
                f"spec.parallelism: {{data: {{mode: fsdp}}, tensor: {tensor}}}, {others}",
                config.replace(mesh=smaller),
            )


def _with_experts(config: RunConfig, others: str) -> Iterator[tuple[str, RunConfig]]:
    """The same with experts split over more of the ranks that shard the data."""
    model, mesh = config.transformer, config.mesh
    assert model.mixture is not None
    for expert in (2, 4, 8):
        if expert > mesh.expert and model.mixture.experts % expert == 0 and mesh.data % expert == 0:
            spread = mesh.replace(expert=expert, shard=mesh.data // expert, replicate=1)
            words = f"spec.parallelism: {{data: {{mode: fsdp}}, expert: {expert}}}, {others}"
            yield words, config.replace(mesh=spread, servers=0)
