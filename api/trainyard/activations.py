"""What the forward pass of a gpt keeps for the backward pass, in scalars (Korthikanti et al., 2022, section 4).

That paper counts a GPT-3 in 16 bits, with dropout and a kept softmax; this is the trainer's model: RMSNorm, SwiGLU,
grouped queries, and an attention that keeps only a logarithm for each query instead of the scores (Dao et al., 2022).
Letters as in the trainer's model: D width of the residual stream, H query and K key heads, F width of the feed-forward
network, V vocabulary; n positions of one micro-batch on the ranks of a tensor group.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainyard.resolve import RunConfig

LOSS_COPIES = 3
"""Copies of the logits when the backward pass begins: the log-softmax, its gradient, and the gradient of the logits."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Scalars on one rank for one micro-batch."""

    block: int
    """Kept by one block until its backward pass."""
    working: int
    """Live besides in the backward pass of one block: gradients inside it, and what is computed again."""
    end: int
    """Kept by last norm and head."""
    logits: int
    """One copy of the logits."""
    stream: int
    """The residual stream: what goes from block to block, and from stage to stage."""


def activations(config: "RunConfig", gpu: bool) -> Activations:
    """Count them for one micro-batch."""
    model, tensor = config.gpt, config.mesh.tensor
    n = config.micro_batch * model.sequence_length // config.mesh.context
    kv = model.dim * model.kv_heads // model.heads
    # A tensor group splits the residual stream by positions and the rest by heads and columns; but each rank gathers
    # the inputs of its matrices whole.
    stream, inputs, inside = n * model.dim // tensor, n * model.dim, n // tensor
    norm = stream if gpu else 2 * stream  # CUDA has one kernel for it, which keeps the input only
    attention = inside * (2 * model.dim + 2 * kv + model.heads)  # q, k, v, output; logarithms
    whole = 2 * norm + 2 * inputs + attention + 4 * inside * model.ffn_dim
    products = inside * (2 * model.dim + 2 * kv + 2 * model.ffn_dim + model.heads) + 2 * inputs
    kept = {"none": whole, "selective": stream + products, "full": stream}[config.trainer.activation_checkpointing]
    return Activations(
        block=kept,
        working=whole - kept + 2 * inside * model.ffn_dim + 2 * inputs,
        end=norm + inputs,
        logits=n * model.vocab_size // tensor,
        stream=stream,
    )
