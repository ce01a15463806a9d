"""Which modules of a llama parallelism applies to."""

from collections.abc import Sequence

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

from trainyard_trainer.models.family import Attention, ParallelPlan, TensorPlan
from trainyard_trainer.models.llama.model import Llama

POSITIONS = 1
"""Dimension of the positions in [B, T, D]; it is split outside of attention and feed-forward network."""
HEADS = 2
"""Dimension of the heads in [B, T, H, E]; it is split inside of attention."""


class LlamaPlan(ParallelPlan):
    """Plan of a llama, or of a pipeline stage of it."""

    def __init__(self, model: Llama) -> None:
        self._model = model

    def layers(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return self._model.layers()

    def embedding(self) -> nn.Module | None:
        """Return the embedding, in the first stage of a pipeline."""
        return self._model.embed

    def head(self) -> Sequence[nn.Module]:
        """Return the last norm and the head, in the last stage of a pipeline."""
        return [module for module in (self._model.norm, self._model.head) if module is not None]

    def attentions(self) -> Sequence[Attention]:
        """Return the attention of each block."""
        return [block.attention for block in self._model.layers()]

    def tensor_plan(self) -> TensorPlan:
        """Return the plan of tensor parallelism, with sequence parallelism between the matrices.

        q, k, v, gate and up are split by columns, so that each rank has complete heads; o and down by rows (Shoeybi et
        al., 2019; Korthikanti et al., 2022). The embedding is split by vocabulary, and so are the head and the logits,
        which the loss takes as they are (`parallel.loss`).
        """
        plan: list[tuple[nn.Module, dict[str, ParallelStyle]]] = [
            (block, _block_plan(norms=block.attention.q_norm is not None)) for block in self._model.layers()
        ]
        if self._model.embed is not None:
            # Each rank has all token ids, and looks up those in its part of the vocabulary.
            embed = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(POSITIONS))
            plan.append((self._model, {"embed": embed}))
        if self._model.head is not None:
            head = ColwiseParallel(input_layouts=Shard(POSITIONS), output_layouts=Shard(-1), use_local_output=False)
            plan.append((self._model, {"norm": SequenceParallel(), "head": head}))
        return plan


def _block_plan(*, norms: bool) -> dict[str, ParallelStyle]:
    """Return the plan of a block; `norms`: whether queries and keys are normalized, each rank those of its heads."""
    columns, rows = ColwiseParallel, RowwiseParallel
    of_heads = {
        "attention.q_norm": SequenceParallel(sequence_dim=HEADS, use_local_output=True),
        "attention.k_norm": SequenceParallel(sequence_dim=HEADS, use_local_output=True),
    }
    return {
        **(of_heads if norms else {}),
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(Shard(POSITIONS), None), desired_input_layouts=(Replicate(), None)
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
