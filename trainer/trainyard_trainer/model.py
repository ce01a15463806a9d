"""A decoder-only transformer in the shape of Llama (Touvron et al., 2023).

Letters in names and comments: B samples, T positions, D width of the residual stream, H query heads, K key and
value heads, E width of a head (D / H), F width of the feed-forward network, V vocabulary.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.resolve import GptConfig

ROPE_BASE = 10_000.0
INIT_STD = 0.02


class Gpt(nn.Module):
    """Token ids [B, T] in, logits [B, T, V] of the next token out."""

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        cos, sin = rotary_table(config.sequence_length, config.dim // config.heads)
        self.register_buffer("cos_TE", cos, persistent=False)
        self.register_buffer("sin_TE", sin, persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions = tokens_BT.shape[1]
        cos_TE, sin_TE = self.cos_TE[:positions], self.sin_TE[:positions]
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TE, sin_TE)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


class Block(nn.Module):
    """Attention, then a feed-forward network, each on a normalised copy of the residual stream."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        h_BTD: Tensor = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TE, sin_TE)
        y_BTD: Tensor = h_BTD + self.feed_forward(self.feed_forward_norm(h_BTD))
        return y_BTD


class Attention(nn.Module):
    """Causal self-attention; H / K query heads share a key and value head (Ainslie et al., 2023)."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.head_dim = config.dim // config.heads
        self.grouped = config.kv_heads != config.heads
        self.q = nn.Linear(config.dim, config.heads * self.head_dim, bias=False)
        self.k = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(config.heads * self.head_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        # The number of heads is left to -1, so that it follows when the weights are split by heads.
        q_BHTE = self.q(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k_BKTE = self.k(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        v_BKTE = self.v(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q_BHTE = rotate(q_BHTE, cos_TE, sin_TE)
        k_BKTE = rotate(k_BKTE, cos_TE, sin_TE)
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=self.grouped)
        y_BTD: Tensor = self.o(y_BHTE.transpose(1, 2).flatten(-2))
        return y_BTD


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD


def rotary_table(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, E] of the rotary position embedding (Su et al., 2021).

    Pair i of a head is (i, i + E/2), as in the Hugging Face Llama, and turns by position / base^(2i/E).
    """
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn each pair of a head by the angle of its position."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE


@torch.no_grad()
def initialize(model: nn.Module, seed: int, layers: int) -> None:
    """Set every parameter to a value that depends on the seed, its name and its shape, and on nothing else.

    So the weights are the same however the model is later split over processes, and whatever else is in it.
    Matrices are normal with deviation 0.02, those that write to the residual stream divided by
    sqrt(2 x layers) (Radford et al., 2019); gains of the norms are 1.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
            continue
        std = INIT_STD / math.sqrt(2 * layers) if name.endswith((".o.weight", ".down.weight")) else INIT_STD
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes 63 bits without a sign


def parameter_count(model: nn.Module) -> int:
    """Number of trained scalars."""
    return sum(p.numel() for p in model.parameters())
