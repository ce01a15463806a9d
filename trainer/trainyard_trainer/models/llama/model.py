"""A decoder-only transformer in the shape of Llama (Touvron et al., 2023).

Letters in names and comments: B samples, T positions, D width of the residual stream, H query heads, K key and
value heads, E width of a head, F width of the feed-forward network, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.models.decoder_sizes import DecoderConfig
from trainyard_trainer.models.family import Model
from trainyard_trainer.models.llama.attention_mask import document_mask, masked_attention
from trainyard_trainer.models.llama.rotary import Rotary

INIT_STD = 0.02


class Llama(Model):
    """Token ids [B, T] in, logits [B, T, V] of the next token out.

    In a pipeline it is one stage: some of the blocks, the embedding in the first stage only, and norm and head in the
    last only. One stage passes the residual stream [B, T, D] to the next.
    """

    residual_outputs: tuple[str, ...] = (".o.weight", ".down.weight")
    """Ends of the names of the parameters whose results are added to the residual stream."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: range | None = None,
        feed_forward: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Make the blocks `layers` (all if None), with what `feed_forward` makes in place of a feed-forward network."""
        super().__init__()
        layers = range(config.layers) if layers is None else layers
        self.config = config
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        self.embed = nn.Embedding(config.vocab_size, config.dim) if layers.start == 0 else None
        self.blocks = nn.ModuleDict({str(layer): Block(config, self.rotary, feed_forward) for layer in layers})
        last = layers.stop == config.layers
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps) if last else None
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False) if last else None
        self.tie()
        self.set_positions(0, config.sequence_length, torch.device("cpu"))

    def tie(self) -> None:
        """Give the head the matrix of the embedding, if they are tied; admission refuses that with a pipeline."""
        if self.config.tied_embeddings:
            assert self.embed is not None
            assert self.head is not None
            self.head.weight = self.embed.weight

    def set_positions(self, first: int, count: int, device: torch.device) -> None:
        """Set which positions of a sequence the inputs hold: all of them, unless a context group divides it."""
        self.rotary.set_positions(first, count, device)

    def layers(self) -> "list[Block]":
        """Return the blocks in order."""
        return cast("list[Block]", list(self.blocks.values()))

    def initial(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return mean and standard deviation of a parameter's initial values.

        Gains of the norms are 1. Matrices have the deviation 0.02, divided by sqrt(2 x layers) if their results are
        added to the residual stream (Radford et al., 2019).
        """
        if len(shape) < 2:
            return 1.0, 0.0
        scale = math.sqrt(2 * self.config.layers) if name.endswith(self.residual_outputs) else 1.0
        return 0.0, INIT_STD / scale

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """Return logits, or the residual stream in a pipeline.

        Args:
            x: token ids [B, T], or the residual stream [B, T, D].
            documents: number of the document of each position of the complete samples [B, T], if attention must not
                cross documents. Positions continue: rotary attention depends on their differences only.
        """
        if self.embed is not None:
            x = self.embed(x)
        mask = None if documents is None else document_mask(documents)
        for block in self.layers():
            x = block(x, mask)
        if self.norm is not None and self.head is not None:
            x = self.head(self.norm(x))
        return x


class Block(nn.Module):
    """Attention, then a feed-forward network, each on a normalised copy of the residual stream."""

    def __init__(
        self, config: DecoderConfig, rotary: Rotary, feed_forward: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, rotary)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config) if feed_forward is None else feed_forward()

    def forward(self, x_BTD: Tensor, mask: Any = None) -> Tensor:
        h_BTD: Tensor = x_BTD + self.attention(self.attention_norm(x_BTD), mask)
        y_BTD: Tensor = h_BTD + self.feed_forward(self.feed_forward_norm(h_BTD))
        return y_BTD


class Attention(nn.Module):
    """Causal self-attention; H / K query heads share a key and value head (Ainslie et al., 2023)."""

    def __init__(self, config: DecoderConfig, rotary: Rotary) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.rotary = rotary
        self.core: nn.Module = CausalAttention(grouped=config.kv_heads != config.heads)
        self.q = nn.Linear(config.dim, config.q_dim, bias=False)
        self.k = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.v = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.o = nn.Linear(config.q_dim, config.dim, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, mask: Any = None) -> Tensor:
        # -1: the number of heads follows from the weights, of which a tensor group gives each rank some heads.
        q_BTHE = self.q(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKE = self.k(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKE = self.v(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHE, k_BTKE = self.q_norm(q_BTHE), self.k_norm(k_BTKE)
        q_BHTE, k_BKTE, v_BKTE = (x.transpose(1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
        y_BHTE = self.core(self.rotary(q_BHTE), self.rotary(k_BKTE), v_BKTE, mask)
        y_BTD: Tensor = self.o(y_BHTE.transpose(1, 2).flatten(-2))
        return y_BTD


class CausalAttention(nn.Module):
    """Attention of each position to itself and all earlier ones.

    It has no parameters; it is a module of its own so that context parallelism can wrap it.
    """

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask: Any = None) -> Tensor:
        """Return the results [B, H, T, E]; `mask`: of `document_mask`, None for all earlier positions."""
        if mask is not None:
            return masked_attention(q_BHTE, k_BKTE, v_BKTE, mask, grouped=self.grouped)
        return F.scaled_dot_product_attention(q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=self.grouped)


class FeedForward(nn.Module):
    """A feed-forward network with SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return y_BTD
