"""What the forward pass of a gpt or moe keeps for the backward pass (Korthikanti et al., 2022, section 4).

That paper counts a GPT-3 in 16 bits, with dropout and a kept softmax; this is the trainer's model: RMSNorm, SwiGLU,
grouped queries, and an attention that keeps only a logarithm for each query instead of the scores (Dao et al., 2022).
Letters as in the trainer's model: D width of the residual stream, H query and K key heads, F width of the feed-forward
network, V vocabulary; n positions of one micro-batch on the ranks of a tensor group. Of a moe each position is k rows,
one for each expert that it goes to; the load of the experts is taken to be even.
"""

from dataclasses import dataclass

from trainyard.config import RunConfig

LOSS_COPIES = 3
"""Copies of the logits when the backward pass begins: the log-softmax, its gradient, and the gradient of the logits."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes on one rank for one micro-batch."""

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


def is_plain(config: RunConfig) -> bool:
    """Whether every rank holds the whole model by itself, without fully_shard (see the trainer's `parallel.py`)."""
    mesh = config.mesh
    whole = mesh.pipeline * mesh.shard * mesh.expert * mesh.tensor == 1
    return mesh.size == 1 or (whole and config.model.name != "moe")


def widths(config: RunConfig) -> tuple[int, int]:
    """Bytes of a value in the residual stream, and inside of a block.

    With bfloat16 a sharded model computes all in it; else autocast leaves residual stream and norms as they are.
    """
    if config.trainer.precision == "float32":
        return 4, 4
    return (4, 2) if is_plain(config) else (2, 2)


def activations(config: RunConfig, gpu: bool) -> Activations:
    """Count them for one micro-batch."""
    model, tensor = config.gpt, config.mesh.tensor
    n = config.micro_batch * model.sequence_length // config.mesh.context
    kv = model.dim * model.kv_heads // model.heads
    wide, narrow = widths(config)
    # A tensor group splits the residual stream by positions and the rest by heads and columns; but each rank gathers
    # the inputs of its matrices whole.
    stream, inputs, inside = wide * n * model.dim // tensor, narrow * n * model.dim, narrow * n // tensor
    norm = stream if gpu else 2 * stream  # CUDA has one kernel for it, which keeps the input only
    attention = inside * (2 * model.dim + 2 * kv + model.heads)  # q, k, v, output; logarithms
    products = inside * (2 * model.dim + 2 * kv + model.heads) + inputs
    if model.mixture is None:
        feed_forward, working = 4 * inside * model.ffn_dim + inputs, 2 * inside * model.ffn_dim + 2 * inputs
        products += 2 * inside * model.ffn_dim + inputs
    else:
        rows = model.mixture.experts_per_token * inside
        router = 3 * 4 * n * model.mixture.experts  # in float32
        feed_forward = rows * (4 * model.ffn_dim + 2 * model.dim) + router
        working = rows * (2 * model.ffn_dim + 3 * model.dim)
        products += rows * (2 * model.ffn_dim + model.dim)
    whole = 2 * norm + inputs + attention + feed_forward
    kept = {"none": whole, "selective": stream + products, "full": stream}[config.trainer.activation_checkpointing]
    return Activations(
        block=kept,
        working=whole - kept + working,
        end=norm + inputs,
        logits=4 * n * model.vocab_size // tensor,  # the loss is computed in float32
        stream=stream,
    )
