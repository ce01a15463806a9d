"""Why a job does not fit into the memory in its spec, and changes that make it fit."""

from collections.abc import Iterator
from typing import Literal

from trainyard.config import RunConfig
from trainyard.mesh import Mesh
from trainyard.resource.quantity import format_bytes
from trainyard.resource.spec import TrainingJobSpec
from trainyard.sizing.fit import LIMIT_FIELD, SERVER_FIELD, SHARED_FIELD, Fit, fit, host_fit, server_fit


def memory_problems(spec: TrainingJobSpec, config: RunConfig) -> list[str]:
    """Return why the job does not fit, with the field, the needed memory and a change that helps; empty if it may fit.

    The estimate is compared without a margin, so that a job is refused only if it certainly does not fit.
    """
    found = (_worker_problem(spec, config), _host_problem(spec, config), _server_problem(spec, config))
    return [problem for problem in found if problem]


def _worker_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        worker_fit = fit(spec, config)
    except ValueError as error:
        return f"{LIMIT_FIELD}: {error}"
    if worker_fit.available is None or worker_fit.fits:
        return None
    owner = "each GPU" if worker_fit.of == "gpu" else "a worker"
    return f"{_shortage(worker_fit, owner, 'per rank: ')}; {_advice(spec, config, worker_fit.available)}"


def _host_problem(spec: TrainingJobSpec, config: RunConfig) -> str | None:
    try:
        of_host = host_fit(spec, config)
    except ValueError as error:
        return f"{LIMIT_FIELD}: {error}"
    # Nothing is wrong, or nothing is known.
    if of_host is None or of_host.fits is not False:
        return None
    assert of_host.available is not None
    shortage = _shortage(of_host, "a worker", "host memory, per rank: ")
    waiting = _without_staging(config)
    with_waiting = waiting and host_fit(spec, waiting)
    if with_waiting and with_waiting.needed <= of_host.available:
        return (
            f"{shortage}; give more memory, or set spec.checkpoint.async: false, with which training waits for each "
            f"checkpoint (then about {format_bytes(with_waiting.needed)})"
        )
    return f"{shortage}; give more memory"


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
    parts = sorted({**found.memory.parts, "process": found.process}.items(), key=lambda part: -part[1])
    words = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts[:3] if size)
    words += f"; {SHARED_FIELD} {format_bytes(found.shared)}" if found.shared else ""
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
    if (waiting := _without_staging(config)) is not None:
        yield "spec.checkpoint.async: false", waiting
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
        # Shards of gradients are held between micro-batches, so a single micro-batch can need less than many.
        share = config.micro_batch * config.accumulation
        single = _recompute(sharded).replace(micro_batch=share)
        yield f"spec.parallelism.data.mode: fsdp, {full} and spec.trainer.batch.micro: {share}", single
    split = _with_experts if _split_axis(config) == "expert" else _with_tensor
    yield from split(_recompute(sharded).replace(micro_batch=1), f"{full} and {micro}")


def _fully_sharded(mesh: Mesh) -> Mesh:
    return mesh.replace(replicate=1, shard=mesh.replicate * mesh.shard)


def _without_staging(config: RunConfig) -> RunConfig | None:
    """Return the configuration with training that waits for its checkpoints; None if it does already."""
    if config.checkpoint is None or not config.checkpoint.async_:
        return None
    return config.replace(checkpoint=config.checkpoint.replace(async_=False))


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
