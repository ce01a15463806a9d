"""A decoder-only transformer in the shape of Llama (Touvron et al., 2023).

Letters in names and comments: B samples, T positions, D width of the residual stream, H query heads, K key and
value heads, E width of a head (D / H), F width of the feed-forward network, V vocabulary.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.config import TransformerConfig
from trainyard_trainer.models.moe import MixtureOfExperts

ROPE_BASE = 10_000.0
INIT_STD = 0.02


class Transformer(nn.Module):
    """Token ids [B, T] in, logits [B, T, V] of the next token out.

    Of a pipeline it is one stage: some of the blocks, the embedding only in the first stage, and norm and head only in
    the last. Between stages goes the residual stream [B, T, D]. Names of parameters are those of the whole model.
    """

    def __init__(self, config: TransformerConfig, layers: range | None = None) -> None:
        super().__init__()
        layers = range(config.layers) if layers is None else layers
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim) if layers.start == 0 else None
        self.blocks = nn.ModuleDict({str(layer): Block(config) for layer in layers})
        last = layers.stop == config.layers
        self.norm = nn.RMSNorm(config.dim, eps=1e-5) if last else None
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False) if last else None
        self.set_positions(0, config.sequence_length, torch.device("cpu"))

    def set_positions(self, first: int, count: int, device: torch.device) -> None:
        """Say which positions of the sequence the inputs hold: all of them, unless the context is split."""
        cos, sin = rotary_table(first, count, self.config.dim // self.config.heads)
        # No buffers: DistributedDataParallel would give all ranks those of rank 0.
        self.cos_TE, self.sin_TE = cos.to(device), sin.to(device)

    def layers(self) -> "list[Block]":
        """The blocks, in order."""
        return cast("list[Block]", list(self.blocks.values()))

    def mixtures(self) -> list[MixtureOfExperts]:
        """The feed-forward layers with experts, in order: those of all blocks, or none."""
        layers = [block.feed_forward for block in self.layers()]
        return [layer for layer in layers if isinstance(layer, MixtureOfExperts)]

    def initial(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean and deviation of a parameter's initial values.

        Gains of the norms are 1. Matrices have deviation 0.02, those that write to the residual stream divided by
        sqrt(2 x layers) (Radford et al., 2019).
        """
        if len(shape) < 2:
            return 1.0, 0.0
        narrow = name.endswith((".o.weight", ".down.weight", ".experts.down"))
        return 0.0, INIT_STD / math.sqrt(2 * self.config.layers) if narrow else INIT_STD

    def forward(self, x: Tensor) -> Tensor:
        if self.embed is not None:
            x = self.embed(x)
        for block in self.layers():
            x = block(x, self.cos_TE, self.sin_TE)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x))
        return x


class Block(nn.Module):
    """Attention, then a feed-forward network or a mixture of them, each on a normalised copy of the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.feed_forward: nn.Module = FeedForward(config)
        if config.mixture is not None:
            self.feed_forward = MixtureOfExperts(config.dim, config.ffn_dim, config.mixture)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        h_BTD: Tensor = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TE, sin_TE)
        y_BTD: Tensor = h_BTD + self.feed_forward(self.feed_forward_norm(h_BTD))
        return y_BTD


class Attention(nn.Module):
    """Causal self-attention; H / K query heads share a key and value head (Ainslie et al., 2023)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.dim // config.heads
        self.core: nn.Module = CausalAttention(grouped=config.kv_heads != config.heads)
        self.q = nn.Linear(config.dim, config.heads * self.head_dim, bias=False)
        self.k = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(config.heads * self.head_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        # The number of heads is left to -1, so that it follows when the weights are split by heads.
        q_BHTE = self.q(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k_BKTE = self.k(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        v_BKTE = self.v(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        positions = q_BHTE.shape[2]
        cos_TE, sin_TE = cos_TE[:positions], sin_TE[:positions]
        y_BHTE = self.core(rotate(q_BHTE, cos_TE, sin_TE), rotate(k_BKTE, cos_TE, sin_TE), v_BKTE)
        y_BTD: Tensor = self.o(y_BHTE.transpose(1, 2).flatten(-2))
        return y_BTD


class CausalAttention(nn.Module):
    """Each position looks at itself and at those before it. It has no parameters; a part of its own so that a split
    context can be put around it.
    """

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=self.grouped)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


def rotary_table(first: int, count: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, E] of the rotary position embedding (Su et al., 2021), from a first position on.

    Pair i of a head is (i, i + E/2), as in the Hugging Face Llama, and turns by position / base^(2i/E).
    """
    cpu = torch.device("cpu")
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=cpu) / head_dim)
    angles = torch.outer(torch.arange(first, first + count, dtype=torch.float64, device=cpu), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn each pair of a head by the angle of its position, in float32 whatever the type of x."""
    first, second = x_BHTE.chunk(2, dim=-1)
    turned = x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE
    return turned.to(x_BHTE.dtype)
