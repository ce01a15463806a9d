"""What a rank of the built-in trainer sends in one step, from the configuration alone.

Bytes are those that one rank sends with the usual algorithms, which are optimal in bandwidth (Patarasuk and Yuan,
2009): of N ranks, (N - 1) / N of the whole for an all-gather, a reduce-scatter and an all-to-all, and twice that for an
all-reduce. Scalars and norms of gradients, a few bytes, are left out.
"""

from collections.abc import Iterator
from typing import Literal

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.mesh import AXES, Mesh
from trainyard.sizing.activations import activations
from trainyard.sizing.model_size import mlp_parameters, rank_parameters
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank
from trainyard.sizing.placement import FULL_BYTES, placement

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "point-to-point"]


class Traffic(ApiModel):
    """One kind of exchange on one axis of the mesh."""

    axis: str
    """The axis, or more that act as one; or the parameter server."""
    ranks: int
    """Ranks that take part."""
    collective: Collective
    """What they do."""
    what: str
    """What is exchanged."""
    times: int
    """How often in a step; with gd, whose micro-batches only the worker knows, at least."""
    bytes: int
    """Bytes that a rank sends in a step; of parameters from a server, those that it gets."""
    crosses_workers: bool
    """Whether the ranks are in more than one worker, so that the network carries it."""


def crosses_workers(mesh: Mesh, axis: str, procs_per_worker: int) -> bool:
    """Whether neighbours on an axis are not all in the same worker.

    Ranks are counted with the last axis fastest, so a group of an axis spans the sizes of it and of all axes behind it.
    """
    sizes = mesh.shape[AXES.index(axis) :]
    span = 1
    for size in sizes:
        span *= size
    return sizes[0] > 1 and (span > procs_per_worker or procs_per_worker % span != 0)


def communication(config: RunConfig, place: int, procs_per_worker: int) -> list[Traffic]:
    """All exchanges of a rank at one place of the pipeline, axis by axis."""
    return [
        traffic
        for part in (_parameters, _tensor, _context, _experts, _pipeline)
        for traffic in part(config, place, procs_per_worker)
        if traffic.bytes
    ]


def _traffic(
    config: RunConfig, procs: int, axes: tuple[str, ...], collective: Collective, what: str, times: int, each: int
) -> Traffic:
    """`each`: bytes of the whole that is gathered, reduced or exchanged once."""
    axes = tuple(axis for axis in axes if getattr(config.mesh, axis) > 1)
    ranks = 1
    for axis in axes:
        ranks *= getattr(config.mesh, axis)
    share = {"point-to-point": 1.0, "all-reduce": 2 * (ranks - 1) / ranks}.get(collective, (ranks - 1) / ranks)
    return Traffic(
        axis=" x ".join(axes),
        ranks=ranks,
        collective=collective,
        what=what,
        times=times,
        bytes=round(times * each * share),
        crosses_workers=any(crosses_workers(config.mesh, axis, procs) for axis in axes),
    )


def _parameters(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Gradients once in a step, and gathered parameters (Li et al., 2020; Rajbhandari et al., 2020)."""
    placed = placement(config)
    own = None if config.model.name == "mlp" else rank_parameters(config, place)
    held = mlp_parameters(config) if own is None else own.total
    if placed.served:
        yield from _server(config, FULL_BYTES * held)
        return
    if not placed.sharded:
        yield _traffic(config, procs, ("replicate", "context"), "all-reduce", "gradients", 1, FULL_BYTES * held)
        return
    stacked = own.stacked if own is not None and placed.apart else 0
    dense: tuple[str, ...] = ("shard", "context", "expert")
    yield from _sharded(config, procs, dense, "parameters", held - stacked)
    if placed.experts_sharded:
        yield from _sharded(config, procs, ("shard", "context"), "experts", stacked)
    part = held // placed.shards if own is None else placed.held(own)
    yield _traffic(config, procs, ("replicate",), "all-reduce", "gradients", 1, FULL_BYTES * part)


def _sharded(config: RunConfig, procs: int, axes: tuple[str, ...], what: str, scalars: int) -> Iterator[Traffic]:
    """Gathered forward and backward for each micro-batch, but once in a pipeline, where they are kept for all."""
    placed = placement(config)
    times = 1 if config.mesh.pipeline > 1 else 2 * config.accumulation
    width = FULL_BYTES if placed.casts else placed.width
    yield _traffic(config, procs, axes, "all-gather", what, times, width * scalars)
    gradients = "gradients" if what == "parameters" else f"gradients of {what}"
    yield _traffic(config, procs, axes, "reduce-scatter", gradients, 1, FULL_BYTES * scalars)


def _server(config: RunConfig, size: int) -> Iterator[Traffic]:
    """A gradient to the parameter server, and parameters back (Li et al., 2014). It is a pod of its own."""
    for what in ("gradients, to it", "parameters, back"):
        yield Traffic(
            axis="server",
            ranks=config.mesh.size,
            collective="point-to-point",
            what=what,
            times=1,
            bytes=size,
            crosses_workers=True,
        )


def _experts(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Rows to their experts and back, in each block forward and backward (Lepikhin et al., 2020); the load balanced."""
    if config.mesh.expert == 1:
        return
    passes = 2 if config.trainer.activation_checkpointing == "none" else 3
    times = 2 * passes * rank_parameters(config, place).layers * config.accumulation
    rows = activations(config, gpu=True).rows
    yield _traffic(config, procs, ("expert",), "all-to-all", "tokens", times, rows)


def _tensor(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Inputs of matrices are gathered and their results scattered, in each block twice forward and twice backward."""
    if config.mesh.tensor == 1:
        return
    own, micros = rank_parameters(config, place), config.accumulation
    whole = activations(config, gpu=True).stream * config.mesh.tensor
    again = own.layers if config.trainer.activation_checkpointing != "none" else 0
    ends = (own.embedding > 0) + (own.head > 0)
    # The backward pass of a gather is a scatter, and the other way round. Computed again is all but the last scatter.
    gathers, scatters = 4 * own.layers + ends + 2 * again, 4 * own.layers + ends + again
    yield _traffic(config, procs, ("tensor",), "all-gather", "activations", micros * gathers, whole)
    yield _traffic(config, procs, ("tensor",), "reduce-scatter", "activations", micros * scatters, whole)


def _context(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Queries, keys and values change from positions to heads, and results back (Jacobs et al., 2023)."""
    if config.mesh.context == 1:
        return
    model, own = config.transformer, rank_parameters(config, place)
    passes = own.layers * config.accumulation * (2 if config.trainer.activation_checkpointing == "none" else 3)
    # Four exchanges; their mean size, since keys and values may have fewer heads.
    each = activations(config, gpu=True).heads * (model.heads + model.kv_heads) // (2 * model.heads)
    yield _traffic(config, procs, ("context",), "all-to-all", "heads", 4 * passes, each)


def _pipeline(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Activations to the next stage and gradients to the one before."""
    if config.mesh.pipeline == 1:
        return
    pipeline, stages = config.parallelism.pipeline, stages_of_rank(config.parallelism.pipeline, place)
    last = stage_count(pipeline) - 1
    owners = {stage: p for p in range(pipeline.stages) for stage in stages_of_rank(pipeline, p)}
    # In a V the rank in the middle has two stages in a row and sends nothing between them.
    sends = sum(s < last and owners[s + 1] != place for s in stages)
    sends += sum(s > 0 and owners[s - 1] != place for s in stages)
    each = activations(config, gpu=True).stream
    yield _traffic(
        config, procs, ("pipeline",), "point-to-point", "activations and their gradients",
        sends * config.accumulation, each,
    )  # fmt: skip
