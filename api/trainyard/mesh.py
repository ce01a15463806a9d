"""The mesh: which part of the model and which samples belong to which rank."""

import math
from typing import NamedTuple

from trainyard.base import ApiModel
from trainyard.resource.spec import TrainingJobSpec


class Coordinate(NamedTuple):
    """Place of a rank on each axis, outermost first."""

    pipeline: int
    replicate: int
    shard: int
    context: int
    expert: int
    tensor: int


class Mesh(ApiModel):
    """Sizes of the axes; their product is the world size.

    Ranks are counted with the last axis fastest. So neighbours in tensor, expert and context, who talk in every layer,
    have neighbouring ranks and share a worker, while pipeline stages and replicas, who talk once per micro-batch or per
    step, are the ones that cross workers.
    """

    pipeline: int = 1
    """Stages of layers."""
    replicate: int = 1
    """Copies of the sharded model; they train on different samples."""
    shard: int = 1
    """Ranks that shard parameters and train on different samples."""
    context: int = 1
    """Ranks that hold parts of the same sequences."""
    expert: int = 1
    """Ranks that hold different experts and train on different samples."""
    tensor: int = 1
    """Ranks that hold parts of the same matrices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost axis first."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return math.prod(self.shape)

    @property
    def data(self) -> int:
        """Ranks with different samples."""
        return self.replicate * self.shard * self.expert

    def coordinate(self, rank: int) -> Coordinate:
        """Where a rank stands."""
        places = []
        for size in reversed(self.shape):
            rank, place = divmod(rank, size)
            places.append(place)
        return Coordinate(*reversed(places))

    def data_index(self, rank: int) -> int:
        """Which share of the global batch is the rank's, from 0 to `data` - 1."""
        at = self.coordinate(rank)
        return (at.replicate * self.shard + at.shard) * self.expert + at.expert

    def __str__(self) -> str:
        axes = [f"{axis} {size}" for axis, size in zip(AXES, self.shape, strict=True) if size > 1]
        return " x ".join(axes) or "one rank"


AXES = Coordinate._fields


def make_mesh(spec: TrainingJobSpec) -> Mesh:
    """The mesh of a job.

    Raises:
        ValueError: the axes do not divide the world size; the message names the field and the fix.
    """
    wanted = spec.parallel
    model = wanted.pipeline.stages * wanted.context * wanted.tensor
    data, rest = divmod(spec.world_size, model)
    if rest:
        raise ValueError(
            f"spec.parallelism: tensor x context x pipeline.stages = {model} must divide the world size "
            f"{spec.world_size} (workers.replicas x workers.procsPerWorker); change an axis or the number of workers"
        )
    each, rest = divmod(data, wanted.expert)
    if rest:
        raise ValueError(
            f"spec.parallelism.expert: {wanted.expert} must divide the {data} data-parallel ranks (world size / "
            "(tensor x context x pipeline.stages)), which hold the experts together; choose a divisor, or change the "
            "number of workers"
        )
    inner = wanted.expert * wanted.context * wanted.tensor
    shard = {"ddp": 1, "parameterServer": 1, "fsdp": each}.get(wanted.data.mode) or _group(spec, each, inner)
    if each % shard:
        raise ValueError(
            f"spec.parallelism.data.shard: {shard} must divide the {data} data-parallel ranks (world size / (tensor x "
            f"context x pipeline.stages)) over expert = {wanted.expert}; choose a divisor"
        )
    return Mesh(
        pipeline=wanted.pipeline.stages,
        replicate=each // shard,
        shard=shard,
        expert=wanted.expert,
        context=wanted.context,
        tensor=wanted.tensor,
    )


def _group(spec: TrainingJobSpec, data: int, inner: int) -> int:
    """Ranks of an hsdp group: as given, or as many as one worker holds."""
    wanted = spec.parallel.data.shard
    return wanted if wanted != "auto" else math.gcd(data, max(1, spec.procs_per_worker // inner))
