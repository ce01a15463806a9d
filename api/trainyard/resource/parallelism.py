"""`spec.parallelism`: how the model and its data are divided among the ranks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule

Degree = Annotated[int, Field(ge=1, le=65_536)]


class DataParallelism(ApiModel):
    """Data parallelism: the ranks that train on different samples, and what each of them holds of the model."""

    mode: Literal["ddp", "fsdp", "hsdp", "parameterServer"] = "ddp"
    """ddp: each rank holds all parameters (DistributedDataParallel).
    fsdp: each rank holds a shard of parameters, gradients and optimizer state, and gathers the parameters of a block
    when they are needed (fully_shard, ZeRO stage 3).
    hsdp: sharded among the ranks of a group, replicated over the groups (hybrid sharding).
    parameterServer: each rank holds all parameters and sends its gradients to a server in a pod of its own
    (spec.parameterServer), which sums them, updates the parameters and sends these back (Li et al., 2014)."""
    shard: Degree | Literal["auto"] = "auto"
    """hsdp: number of ranks in a group. auto: those of one worker, so that parameters are gathered inside a node."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.mode == 'hsdp' || type(self.shard) != int",
            "spec.parallelism.data.shard: is only for mode hsdp (fsdp shards over all ranks, ddp over none); remove "
            "it, or set mode: hsdp",
        ),
    )


class PipelineParallelism(ApiModel):
    """Pipeline parallelism: the blocks of the model are divided into stages, through which micro-batches pass."""

    stages: Degree = 1
    """Number of ranks in the pipeline; each holds one stage, or two with some schedules."""
    schedule: Literal["GPipe", "1F1B", "Interleaved1F1B", "ZBV"] = "1F1B"
    """Order of the forward and backward passes of the micro-batches.
    GPipe: all forward passes, then all backward passes (Huang et al., 2019).
    1F1B: alternating, which needs less memory (Narayanan et al., 2021).
    Interleaved1F1B: alternating, with two stages per rank and a smaller bubble (Narayanan et al., 2021).
    ZBV: two stages per rank in the shape of a V; the gradients of the weights fill the bubble (Qi et al., 2024)."""


class Parallelism(ApiModel):
    """Sizes of the axes of the device mesh. World size = tensor x context x pipeline.stages x data-parallel ranks."""

    data: DataParallelism = DataParallelism()
    """Data parallelism, over samples."""
    tensor: Degree = 1
    """llama: tensor parallelism. Number of ranks that divide each matrix, and the sequence between the matrices. They
    communicate in every block: keep them inside one worker."""
    async_tensor: bool = False
    """llama: whether the matrix products of a tensor group are divided into parts, so that one part is computed while
    another one travels (asynchronous tensor parallelism: Wang et al., 2023). Needs GPUs that are connected by NVLink,
    and spec.trainer.compile, which divides them."""
    pipeline: PipelineParallelism = PipelineParallelism()
    """Pipeline parallelism, over blocks."""
    context: Degree = 1
    """llama, moe: context parallelism, for long sequences. Number of ranks that divide each sequence. They communicate
    in every block: keep them inside one worker."""
    expert: Degree = 1
    """moe: expert parallelism. Number of data-parallel ranks that divide the experts of each block, and send each token
    to the ranks of its experts. It must divide spec.trainer.model.experts. They communicate in every block: keep them
    inside one worker."""


VIRTUAL_STAGES = {"GPipe": 1, "1F1B": 1, "Interleaved1F1B": 2, "ZBV": 2}
"""Number of stages on each rank of a pipeline, by schedule."""
