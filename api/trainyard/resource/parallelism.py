"""`spec.parallelism`: how one model and its data are split over the ranks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Degree = Annotated[int, Field(ge=1, le=65_536)]


class DataParallelism(ApiModel):
    """What the ranks that train on different samples keep of the model."""

    mode: Literal["ddp", "fsdp", "hsdp", "parameterServer"] = "ddp"
    """ddp: each keeps all of it. fsdp: each keeps a part of parameters, gradients and optimizer state, and gathers a
    layer when it is needed (ZeRO stage 3). hsdp: sharded among the ranks of a group, replicated over the groups.
    parameterServer: each keeps all of it and sends its gradient to a central server, a pod of its own (spec.parameterServer),
    which adds the gradients up, follows the sum, and sends the parameters back (Li et al., 2014)."""
    shard: Degree | Literal["auto"] = "auto"
    """hsdp only: ranks of a group. auto: those of one worker, so that parameters are gathered inside a node."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.mode == 'hsdp' || type(self.shard) != int",
            "spec.parallelism.data.shard: is only for mode hsdp (fsdp shards over all ranks, ddp over none); remove "
            "it, or set mode: hsdp",
        ),
    )


class PipelineParallelism(ApiModel):
    """Layers split into stages, through which micro-batches flow."""

    stages: Degree = 1
    """Ranks in a row, each with its share of the layers."""
    schedule: Literal["GPipe", "1F1B", "Interleaved1F1B", "ZBV"] = "1F1B"
    """Order of forward and backward passes. GPipe: all forwards, then all backwards. 1F1B: alternating, less memory.
    Interleaved1F1B: two stages per rank, a smaller bubble. ZBV: two stages per rank in a V, and the gradients of the
    weights fill the bubble."""


class Parallelism(ApiModel):
    """Axes of the mesh of ranks. What they leave of the world size is data parallelism: world size =
    tensor x context x pipeline.stages x data.
    """

    data: DataParallelism = DataParallelism()
    """Over samples."""
    tensor: Degree = 1
    """Ranks that split each matrix (and, between the matrices, the sequence). Keep them inside one worker."""
    pipeline: PipelineParallelism = PipelineParallelism()
    """Over layers."""
    context: Degree = 1
    """Ranks that split each sequence, for long ones. Keep them inside one worker."""
    expert: Degree = 1
    """moe: data-parallel ranks that split the experts of each layer, and send each other's tokens to them. Keep them
    inside one worker. It must divide spec.trainer.model.experts."""


VIRTUAL_STAGES = {"GPipe": 1, "1F1B": 1, "Interleaved1F1B": 2, "ZBV": 2}
"""Model stages on each rank of a pipeline, by schedule."""
