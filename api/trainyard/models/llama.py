"""The family `llama`: a decoder-only transformer (Touvron et al., 2023)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from trainyard.base import ApiModel, Positive
from trainyard.models.decoder import DecoderConfig, DecoderFamily, DecoderFields
from trainyard.models.family import Feature


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
        "that predicts the next token"
    )
    fields: ClassVar[type[ApiModel]] = LlamaFields
    presets: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "nano": {"dim": 128, "layers": 4, "heads": 4, "kvHeads": 4, "ffnDim": 384},
        "tiny": {"dim": 256, "layers": 6, "heads": 8, "kvHeads": 4, "ffnDim": 768},
        "small": {"dim": 768, "layers": 12, "heads": 12, "kvHeads": 12, "ffnDim": 2048},
        "medium": {"dim": 1024, "layers": 24, "heads": 16, "kvHeads": 16, "ffnDim": 2816},
        "1b": {"dim": 2048, "layers": 16, "heads": 32, "kvHeads": 8, "ffnDim": 8192},
        "8b": {"dim": 4096, "layers": 32, "heads": 32, "kvHeads": 8, "ffnDim": 14336},
        "70b": {"dim": 8192, "layers": 80, "heads": 64, "kvHeads": 8, "ffnDim": 28672},
    }
    supports: ClassVar[frozenset[Feature]] = frozenset(
        {"tensor", "context", "pipeline", "parameterServer", "activationCheckpointing", "compile", "fullBatch"}
    )
    reasons: ClassVar[Mapping[Feature, str]] = {"expert": "other models have no experts"}

    @property
    def config(self) -> type[LlamaConfig]:
        """Type of its resolved sizes."""
        return LlamaConfig
