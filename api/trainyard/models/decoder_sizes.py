"""Sizes of a decoder-only transformer: as a user gives them, and resolved."""

from typing import Annotated, Any

from pydantic import Field

from trainyard.base import ApiModel, Positive
from trainyard.models.family import ModelConfig
from trainyard.models.rope_scaling import RopeScaling


class DecoderFields(ApiModel):
    """Sizes of a decoder in spec.trainer.model."""

    dim: Positive | None = None
    """Width of the residual stream."""
    layers: Positive | None = None
    """Number of transformer blocks."""
    heads: Positive | None = None
    """Number of query heads of each attention layer."""
    kv_heads: Positive | None = None
    """Number of key and value heads; heads / kvHeads query heads share one of each (grouped-query attention)."""
    head_dim: Annotated[int, Field(ge=2, le=65_536)] | None = None
    """Width of a head, an even number. Default: the preset's, else dim / heads."""
    rope_theta: Annotated[float, Field(gt=1, le=1e12)] | None = None
    """Base of the frequencies of rotary positions (Su et al., 2021)."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary frequencies for long sequences."""
    norm_eps: Annotated[float, Field(gt=0, le=1)] | None = None
    """Term added to the mean square in RMSNorm, for numerical stability."""
    tied_embeddings: bool | None = None
    """Whether the head has the matrix of the embedding (Press and Wolf, 2017). Not with a pipeline, whose first stage
    has the embedding and whose last one has the head."""
    qk_norm: bool | None = None
    """Whether queries and keys of each head pass an RMSNorm before they are rotated, as in Qwen 3."""


def _head_dim(sizes: dict[str, Any]) -> int:
    """Return dim / heads; 0 if that is no even number, which `DecoderFamily.problems` reports."""
    dim, heads = sizes["dim"], sizes["heads"]
    return int(dim // heads) if dim % (2 * heads) == 0 else 0


class DecoderConfig(ModelConfig):
    """Resolved sizes of a decoder."""

    dim: int
    """Width of the residual stream."""
    layers: int
    """Number of transformer blocks."""
    heads: int
    """Number of query heads."""
    kv_heads: int
    """Number of key and value heads."""
    ffn_dim: int
    """Hidden width of the feed-forward network, or of one expert."""
    vocab_size: int
    """Entries of embedding and head."""
    sequence_length: int
    """Tokens of one sample."""
    head_dim: int = Field(default_factory=_head_dim)
    """Width of a head."""
    rope_theta: float = 10_000.0
    """Base of the frequencies of rotary positions."""
    rope_scaling: RopeScaling | None = None
    """Change of the rotary frequencies for long sequences."""
    norm_eps: float = 1e-5
    """Term added to the mean square in RMSNorm."""
    tied_embeddings: bool = False
    """Whether the head has the matrix of the embedding."""
    qk_norm: bool = False
    """Whether queries and keys pass an RMSNorm before they are rotated."""

    @property
    def q_dim(self) -> int:
        """Width of the queries of all heads, and of the results of attention."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.kv_heads * self.head_dim
