"""What the forward pass of a llama or moe keeps for the backward pass (Korthikanti et al., 2022, section 4).

That paper counts a transformer-3 in 16 bits, with dropout and a kept softmax; this is the trainer's model: RMSNorm, SwiGLU,
grouped queries, and an attention that keeps only a logarithm for each query instead of the scores (Dao et al., 2022).
Letters as in the trainer's model: D width of the residual stream, H query and K key heads, F width of the feed-forward
network or of an expert, V vocabulary; n positions of one micro-batch on the ranks of a tensor group. A moe has X
experts, and rows, one for each position and each expert that it chooses.
"""

from dataclasses import dataclass

from trainyard.config import RunConfig
from trainyard.sizing.placement import FULL_BYTES, placement

LOSS_COPIES = 3
"""Copies of the logits when the backward pass begins: the log-softmax, its gradient, and the gradient of the logits;
always in float32."""


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
    """One copy of the logits in float32."""
    scores: int
    """One copy as the head gives them."""
    stream: int
    """The residual stream: what goes from block to block, and from stage to stage."""
    heads: int
    """As large as the stream, in the type of queries, keys and values."""
    rows: int
    """The rows of a mixture, each as wide as the stream; 0 without one."""


@dataclass(frozen=True, slots=True)
class _FeedForward:
    """Bytes of one feed-forward network or mixture."""

    kept: int
    products: int
    """Results of its matrix products, which `selective` keeps; without the last one of a dense network."""
    working: int
    rows: int = 0


def activations(config: RunConfig, gpu: bool) -> Activations:
    """Count them for one micro-batch."""
    model, tensor, place = config.transformer, config.mesh.tensor, placement(config)
    n = config.micro_batch * model.sequence_length // config.mesh.context
    kv = model.dim * model.kv_heads // model.heads
    # A tensor group splits the residual stream by positions and the rest by heads and columns; but each rank gathers
    # the inputs of its matrices whole.
    width, inside = place.width, n // tensor
    stream, inputs = place.stream_width * n * model.dim // tensor, width * n * model.dim
    # CUDA has one kernel for it, which keeps the input only; on CPU it is computed in float32, and kept so.
    norm = stream if gpu else 2 * FULL_BYTES * n * model.dim // tensor
    queries = 3 if place.casts else 1  # autocast makes a copy of the input for each of q, k and v
    logarithms = FULL_BYTES * inside * model.heads
    attention = width * inside * (2 * model.dim + 2 * kv) + logarithms  # q, k, v, output
    feed_forward = _dense(config, n) if model.mixture is None else _mixture(config, n)
    whole = 2 * norm + queries * inputs + attention + feed_forward.kept
    products = attention + inputs + feed_forward.products
    kept = {"none": whole, "selective": stream + products, "full": stream}[config.trainer.activation_checkpointing]
    return Activations(
        block=kept,
        working=whole - kept + feed_forward.working,
        end=norm + inputs,
        logits=FULL_BYTES * n * model.vocab_size // tensor,
        scores=width * n * model.vocab_size // tensor,
        stream=stream,
        heads=width * n * model.dim // tensor,
        rows=feed_forward.rows,
    )


def _dense(config: RunConfig, n: int) -> _FeedForward:
    """Kept: the input, and results of gate, up, silu and their product."""
    model, place = config.transformer, placement(config)
    inputs = place.width * n * model.dim
    inner = place.width * n // config.mesh.tensor * model.ffn_dim
    return _FeedForward(
        kept=(2 if place.casts else 1) * inputs + 4 * inner, products=2 * inner + inputs, working=2 * inner + 2 * inputs
    )


def _mixture(config: RunConfig, n: int) -> _FeedForward:
    """Kept: the router's input and probabilities, the rows in order of their experts, and their results in order of
    positions. Over an expert axis as many rows arrive as leave, if the load is balanced, which nobody knows before.

    autocast leaves the products of experts as they are, so there they are in float32.
    """
    model, place = config.transformer, placement(config)
    assert model.mixture is not None
    width = FULL_BYTES if place.casts else place.width
    count = n * model.mixture.experts_per_token
    rows, inner = width * count * model.dim, width * count * model.ffn_dim
    order = 2 * 8 * count  # two permutations of the rows, numbers of 8 bytes
    scores = 2 * FULL_BYTES * n * model.mixture.experts
    return _FeedForward(
        kept=place.width * n * model.dim + scores + 2 * rows + 4 * inner + order,
        products=scores // 2 + 2 * inner + rows,
        working=2 * inner + 3 * rows,
        rows=rows,
    )
