"""The device mesh: which part of the model and which samples belong to which rank."""

import math
from typing import NamedTuple

from trainyard.base import ApiModel
from trainyard.resource.spec import TrainingJobSpec


class Coordinate(NamedTuple):
    """Index of a rank along each mesh axis, outermost axis first."""

    pipeline: int
    replicate: int
    shard: int
    context: int
    expert: int
    tensor: int


class Mesh(ApiModel):
    """Sizes of the mesh axes. Their product is the world size.

    The last axis varies fastest. Ranks that communicate in every layer (tensor, expert, context) are therefore
    neighbours and usually share a worker; pipeline stages and replicas, which communicate once per micro-batch or per
    step, are spread over the workers.
    """

    pipeline: int = 1
    """Number of pipeline stages."""
    replicate: int = 1
    """Number of copies of the sharded model, which train on different samples."""
    shard: int = 1
    """Number of ranks that shard the parameters and train on different samples."""
    context: int = 1
    """Number of ranks that hold parts of the same sequences."""
    expert: int = 1
    """Number of ranks that hold different experts and train on different samples."""
    tensor: int = 1
    """Number of ranks that hold parts of the same matrices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the size of each axis, outermost axis first."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return math.prod(self.shape)

    @property
    def data(self) -> int:
        """Return the number of data-parallel ranks: those with different samples."""
        return self.replicate * self.shard * self.expert

    def coordinate(self, rank: int) -> Coordinate:
        """Return the index of a rank along each axis."""
        indexes = []
        for size in reversed(self.shape):
            rank, index = divmod(rank, size)
            indexes.append(index)
        return Coordinate(*reversed(indexes))

    def data_index(self, rank: int) -> int:
        """Return the index of the share of the global batch that a rank trains on, from 0 to `data` - 1."""
        at = self.coordinate(rank)
        return (at.replicate * self.shard + at.shard) * self.expert + at.expert

    def __str__(self) -> str:
        axes = [f"{axis} {size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        return " x ".join(axes) or "one rank"


AXES = Coordinate._fields
"""Names of the mesh axes, outermost first."""


def make_mesh(spec: TrainingJobSpec) -> Mesh:
    """Return the mesh of a job.

    Raises:
        ValueError: the axes do not divide the world size; the message names the field and the fix.
    """
    axes = spec.parallel
    model = axes.pipeline.stages * axes.context * axes.tensor
    data, remainder = divmod(spec.world_size, model)
    # The axes that split the model must divide the world size.
    if remainder:
        raise ValueError(
            f"spec.parallelism: tensor x context x pipeline.stages = {model} must divide the world size "
            f"{spec.world_size} (workers.replicas x workers.procsPerWorker); change an axis or the number of workers"
        )
    per_expert, remainder = divmod(data, axes.expert)
    # Experts are spread over the data-parallel ranks.
    if remainder:
        raise ValueError(
            f"spec.parallelism.expert: {axes.expert} must divide the {data} data-parallel ranks (world size / "
            "(tensor x context x pipeline.stages)), which hold the experts together; choose a divisor, or change the "
            "number of workers"
        )
    inner = axes.expert * axes.context * axes.tensor
    shard = {"ddp": 1, "parameterServer": 1, "fsdp": per_expert}.get(axes.data.mode) or _group(spec, per_expert, inner)
    # The groups of hsdp must be equally large.
    if per_expert % shard:
        raise ValueError(
            f"spec.parallelism.data.shard: {shard} must divide the {data} data-parallel ranks (world size / (tensor x "
            f"context x pipeline.stages)) over expert = {axes.expert}; choose a divisor"
        )
    return Mesh(
        pipeline=axes.pipeline.stages,
        replicate=per_expert // shard,
        shard=shard,
        expert=axes.expert,
        context=axes.context,
        tensor=axes.tensor,
    )


def _group(spec: TrainingJobSpec, data: int, inner: int) -> int:
    """Return the number of ranks in a group of hsdp: data.shard, or with auto as many as one worker holds.

    `data`: data-parallel ranks that hold the same experts. `inner`: ranks that each of them stands for.
    """
    shard = spec.parallel.data.shard
    return shard if shard != "auto" else math.gcd(data, max(1, spec.procs_per_worker // inner))
