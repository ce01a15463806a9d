"""Tensor parallelism (Shoeybi et al., 2019), with sequence parallelism (Korthikanti et al., 2022) in between."""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from trainyard_trainer.models.transformer import Transformer

POSITIONS = 1
"""The dimension of positions in [B, T, D]; outside of attention and feed-forward network it is split."""


def split_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Replace the parameters by parts of them, and say what is exchanged before and after each matrix.

    q, k, v, gate and up are split by columns, so that each rank has whole heads; o and down by rows. The embedding is
    split by vocabulary, and so are the head and the logits, which the loss takes as they are (`loss_parallel`).
    """
    for block in model.layers():
        parallelize_module(block, mesh, _block_plan())
    if model.embed is not None:
        # Ids are whole on each rank; a rank looks up those of its part of the vocabulary.
        plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(POSITIONS))
        parallelize_module(model, mesh, {"embed": plan})
    if model.head is not None:
        head = ColwiseParallel(input_layouts=Shard(POSITIONS), output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(model, mesh, {"norm": SequenceParallel(), "head": head})


def _block_plan() -> dict[str, ParallelStyle]:
    columns, rows = ColwiseParallel, RowwiseParallel
    return {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(Shard(POSITIONS), None, None), desired_input_layouts=(Replicate(), None, None)
        ),
        "attention.q": columns(),
        "attention.k": columns(),
        "attention.v": columns(),
        "attention.o": rows(output_layouts=Shard(POSITIONS)),
        "feed_forward_norm": SequenceParallel(),
        "feed_forward": PrepareModuleInput(input_layouts=(Shard(POSITIONS),), desired_input_layouts=(Replicate(),)),
        "feed_forward.gate": columns(),
        "feed_forward.up": columns(),
        "feed_forward.down": rows(output_layouts=Shard(POSITIONS)),
    }
