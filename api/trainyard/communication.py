"""What a rank of the built-in trainer sends in one step, from the configuration alone.

Bytes are those that one rank sends with the usual algorithms, which are optimal in bandwidth (Patarasuk and Yuan,
2009): of N ranks, (N - 1) / N of the whole for an all-gather, a reduce-scatter and an all-to-all, and twice that for an
all-reduce. Scalars and norms of gradients, a few bytes, are left out.
"""

import math
from collections.abc import Iterator
from typing import Literal

from trainyard.activations import activations, is_plain, widths
from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.memory import GRADIENT_BYTES
from trainyard.mesh import AXES, Mesh
from trainyard.parameters import mlp_parameters, rank_parameters
from trainyard.stages import stage_count, stages_of_rank

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "point-to-point"]


class Traffic(ApiModel):
    """One kind of exchange on one axis of the mesh."""

    axis: str
    """The axis, or two that act as one."""
    ranks: int
    """Ranks that take part."""
    collective: Collective
    """What they do."""
    what: str
    """What is exchanged."""
    times: int
    """How often in a step."""
    bytes: int
    """Bytes that a rank sends in a step."""
    crosses_workers: bool
    """Whether the ranks are in more than one worker, so that the network carries it."""


def crosses_workers(mesh: Mesh, axis: str, procs_per_worker: int) -> bool:
    """Whether neighbours on an axis are not all in the same worker.

    Ranks are counted with the last axis fastest, so a group of an axis spans the sizes of it and of all axes behind it.
    """
    sizes = mesh.shape[AXES.index(axis) :]
    span = math.prod(sizes)
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
    ranks = math.prod(getattr(config.mesh, axis) for axis in axes)
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
    mesh = config.mesh
    if config.model.name == "mlp":
        held = dense = mlp_parameters(config)
        experts = 0
    else:
        own = rank_parameters(config, place)
        held, experts = own.total, own.layers * own.experts
        dense = held - experts
    if config.servers:
        yield _to_server(config, GRADIENT_BYTES * held)
        return
    if is_plain(config):
        yield _traffic(config, procs, ("replicate", "context"), "all-reduce", "gradients", 1, GRADIENT_BYTES * held)
        return
    # Gathered forward and backward for each micro-batch, but once in a pipeline, where they are kept for all of them.
    gathered = 1 if mesh.pipeline > 1 else 2 * config.accumulation
    _, width = widths(config)
    for axes, what, size in (
        (("shard", "expert", "context"), "", dense),
        (("shard", "context"), " of experts", experts),
    ):
        yield _traffic(config, procs, axes, "all-gather", f"parameters{what}", gathered, width * size)
        yield _traffic(config, procs, axes, "reduce-scatter", f"gradients{what}", 1, GRADIENT_BYTES * size)
        part = size // math.prod(getattr(mesh, axis) for axis in axes)
        yield _traffic(config, procs, ("replicate",), "all-reduce", f"gradients{what}", 1, GRADIENT_BYTES * part)


def _to_server(config: RunConfig, size: int) -> Traffic:
    """The whole gradient goes to the server; as much comes back. The server sends that to each worker's rank."""
    return Traffic(
        axis="server",
        ranks=config.mesh.data + config.servers,
        collective="point-to-point",
        what="gradients",
        times=1,
        bytes=size,
        crosses_workers=True,
    )


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
    model, own = config.gpt, rank_parameters(config, place)
    passes = own.layers * config.accumulation * (2 if config.trainer.activation_checkpointing == "none" else 3)
    # Four exchanges; their mean size, since keys and values may have fewer heads.
    each = activations(config, gpu=True).stream * (model.heads + model.kv_heads) // (2 * model.heads)
    yield _traffic(config, procs, ("context",), "all-to-all", "heads", 4 * passes, each)


def _experts(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Each token goes to its experts and comes back (Lepikhin et al., 2020); an even load is taken for granted."""
    if config.mesh.expert == 1:
        return
    own, mixture = rank_parameters(config, place), config.gpt.mixture
    assert mixture is not None
    passes = own.layers * config.accumulation * (2 if config.trainer.activation_checkpointing == "none" else 3)
    each = activations(config, gpu=True).stream * mixture.experts_per_token
    yield _traffic(config, procs, ("expert",), "all-to-all", "tokens", 2 * passes, each)


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
