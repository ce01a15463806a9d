"""Traffic of a rank of the built-in trainer in one step, estimated from the configuration alone.

Bytes are those that one rank sends with bandwidth-optimal algorithms (Patarasuk and Yuan, 2009): among N ranks,
(N - 1) / N of the complete tensor for an all-gather, a reduce-scatter and an all-to-all, and twice that for an
all-reduce. Scalars and norms of gradients, a few bytes, are left out.
"""

from collections.abc import Iterator
from typing import Literal

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.mesh import AXES, Mesh
from trainyard.models.family import FULL_BYTES
from trainyard.sizing.activations import activations
from trainyard.sizing.model_size import rank_parameters, trained_parameters
from trainyard.sizing.peak_memory import accumulates_shards
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank
from trainyard.sizing.placement import placement

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "point-to-point"]


class Traffic(ApiModel):
    """One kind of communication on one axis of the mesh."""

    axis: str
    """Name of the axis, of several axes that act as one, or `server`."""
    ranks: int
    """Number of ranks that take part."""
    collective: Collective
    """Collective operation."""
    what: str
    """Tensors that are sent."""
    times: int
    """Number of operations per step; a lower limit if each step is over all samples."""
    bytes: int
    """Bytes that a rank sends per step; of the parameters of a server, bytes that it receives."""
    crosses_workers: bool
    """Whether the ranks are spread over more than one worker, so that the data passes through the network."""


def crosses_workers(mesh: Mesh, axis: str, procs_per_worker: int) -> bool:
    """Return whether the ranks of an axis are spread over more than one worker.

    The last axis varies fastest with the rank, so a group of an axis spans that axis and all inner ones.
    """
    sizes = mesh.shape[AXES.index(axis) :]
    span = 1
    for size in sizes:
        span *= size
    return sizes[0] > 1 and (span > procs_per_worker or procs_per_worker % span != 0)


def rank_traffic(config: RunConfig, place: int, procs_per_worker: int) -> list[Traffic]:
    """Return the traffic of a rank at one place of the pipeline, axis by axis."""
    return [
        traffic
        for part in (_parameters, _tensor, _context, _experts, _pipeline)
        for traffic in part(config, place, procs_per_worker)
        if traffic.bytes
    ]


def _traffic(
    config: RunConfig, procs: int, axes: tuple[str, ...], collective: Collective, what: str, times: int, each: int
) -> Traffic:
    """Return the traffic of an operation that is done `times` per step on complete tensors of `each` bytes."""
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
    """Yield the gradients and the gathered parameters (Li et al., 2020; Rajbhandari et al., 2020)."""
    placed, own = placement(config), rank_parameters(config, place)
    trained = trained_parameters(config, place)
    # Rule 1: with a parameter server, everything goes through it.
    if placed.served:
        yield from _server(config, FULL_BYTES * own.total)
        return
    # Rule 2: what is not sharded is replicated, and its gradients are reduced.
    if not placed.sharded:
        yield _traffic(
            config, procs, ("replicate", "context"), "all-reduce", "gradients", 1, FULL_BYTES * trained.total
        )
        return
    # Rule 3: shards are gathered and their gradients scattered; experts that ranks divide have a mesh of their own.
    stacked = own.stacked if placed.apart else 0
    axes = ("shard", "context", "expert")
    inner, reduced = own.total - stacked - own.outer, trained.total - stacked - trained.outer
    yield from _sharded(config, procs, axes, "parameters", inner, reduced)
    yield from _sharded(config, procs, axes, "embedding and head", own.outer, trained.outer, passes=1)
    if placed.experts_sharded:
        yield from _sharded(config, procs, ("shard", "context"), "experts", stacked, stacked)
    yield _traffic(config, procs, ("replicate",), "all-reduce", "gradients", 1, FULL_BYTES * placed.held(trained))


def _sharded(
    config: RunConfig, procs: int, axes: tuple[str, ...], what: str, scalars: int, trained: int, passes: int = 2
) -> Iterator[Traffic]:
    """Yield the traffic of fully_shard: a gather in each pass of a micro-batch, but in a pipeline one per step.

    What stands outside of the blocks is gathered for the forward pass only.
    """
    placed, reduced = placement(config), config.accumulation if accumulates_shards(config) else 1
    times = 1 if config.mesh.pipeline > 1 else passes * config.accumulation
    yield _traffic(config, procs, axes, "all-gather", what, times, placed.width * scalars)
    gradients = "gradients" if what == "parameters" else f"gradients of {what}"
    yield _traffic(config, procs, axes, "reduce-scatter", gradients, reduced, FULL_BYTES * trained)


def _server(config: RunConfig, size: int) -> Iterator[Traffic]:
    """Yield the gradients sent to the parameter server, and the parameters sent back (Li et al., 2014)."""
    for what in ("gradients, to the server", "parameters, from the server"):
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
    """Yield the rows sent to their experts and back (Lepikhin et al., 2020), assuming that the load is balanced."""
    if config.mesh.expert == 1:
        return
    passes = 2 if config.trainer.activation_checkpointing == "none" else 3
    times = 2 * passes * rank_parameters(config, place).layers * config.accumulation
    rows = activations(config, gpu=True).expert_rows
    yield _traffic(config, procs, ("expert",), "all-to-all", "tokens", times, rows)


def _tensor(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Yield the gathered inputs of matrices and their scattered results: twice per block in each of the passes."""
    if config.mesh.tensor == 1:
        return
    own, micros = rank_parameters(config, place), config.accumulation
    complete = activations(config, gpu=True).stream * config.mesh.tensor
    recomputed = own.layers if config.trainer.activation_checkpointing != "none" else 0
    ends = (own.embedding > 0) + (own.head > 0)
    # The backward pass of a gather is a scatter, and vice versa. All but the last scatter is recomputed.
    gathers, scatters = 4 * own.layers + ends + 2 * recomputed, 4 * own.layers + ends + recomputed
    yield _traffic(config, procs, ("tensor",), "all-gather", "activations", micros * gathers, complete)
    yield _traffic(config, procs, ("tensor",), "reduce-scatter", "activations", micros * scatters, complete)
    if own.head:
        # Of each token the logarithm of a sum, and the logit of its target.
        tokens = config.micro_batch * config.tokens_per_sample // config.mesh.context
        each = 2 * FULL_BYTES * tokens * config.mesh.tensor
        yield _traffic(config, procs, ("tensor",), "all-gather", "parts of the loss", micros, each)


def _context(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Yield the exchange of queries, keys, values and results of attention (Jacobs et al., 2023)."""
    if config.mesh.context == 1:
        return
    own = rank_parameters(config, place)
    passes = own.layers * config.accumulation * (2 if config.trainer.activation_checkpointing == "none" else 3)
    each = activations(config, gpu=True).attention_exchange
    yield _traffic(config, procs, ("context",), "all-to-all", "heads", 4 * passes, each)


def _pipeline(config: RunConfig, place: int, procs: int) -> Iterator[Traffic]:
    """Yield the activations sent to the next stage and the gradients sent to the previous one."""
    if config.mesh.pipeline == 1:
        return
    pipeline, stages = config.parallelism.pipeline, stages_of_rank(config.parallelism.pipeline, place)
    last = stage_count(pipeline) - 1
    owners = {stage: p for p in range(pipeline.stages) for stage in stages_of_rank(pipeline, p)}
    # In a V the last rank has two consecutive stages and sends nothing between them.
    sends = sum(s < last and owners[s + 1] != place for s in stages)
    sends += sum(s > 0 and owners[s - 1] != place for s in stages)
    each = activations(config, gpu=True).stream
    yield _traffic(
        config, procs, ("pipeline",), "point-to-point", "activations and their gradients",
        sends * config.accumulation, each,
    )  # fmt: skip
