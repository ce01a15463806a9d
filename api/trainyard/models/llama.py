"""The family `llama`: a decoder-only transformer (Touvron et al., 2023)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from trainyard.base import ApiModel, Positive
from trainyard.models.decoder import DecoderConfig, DecoderFamily, DecoderFields
from trainyard.models.family import Feature
from trainyard.models.presets import LLAMA, Shape


class LlamaFields(DecoderFields):
    """Fields of a llama in spec.trainer.model."""

    ffn_dim: Positive | None = None
    """Hidden width of the feed-forward network."""


class LlamaConfig(DecoderConfig):
    """Resolved sizes of a llama."""

    name: Literal["llama"] = "llama"
    """Name of the family."""


class LlamaFamily(DecoderFamily[LlamaConfig]):
    """Llama."""

    name: ClassVar[str] = "llama"
    description: ClassVar[str] = (
        "a decoder-only transformer in the shape of Llama (RMSNorm, rotary positions, grouped-query attention, SwiGLU) "
        "that predicts the next token; with qkNorm in the shape of Qwen 3"
    )
    fields: ClassVar[type[ApiModel]] = LlamaFields
    presets: ClassVar[Mapping[str, Shape]] = LLAMA
    supports: ClassVar[frozenset[Feature]] = frozenset(
        {
            "tensor",
            "context",
            "pipeline",
            "parameterServer",
            "activationCheckpointing",
            "compile",
            "fullBatch",
            "isolatedDocuments",
            "privacy",
        }
    )
    reasons: ClassVar[Mapping[Feature, str]] = {"expert": "other models have no experts"}

    @property
    def config(self) -> type[LlamaConfig]:
        """Type of its resolved sizes."""
        return LlamaConfig
