"""The family `llama`: a decoder-only transformer (Touvron et al., 2023)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from trainyard.base import ApiModel, Positive
from trainyard.models.decoder import DecoderFamily
from trainyard.models.decoder_sizes import DecoderConfig, DecoderFields
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
    architectures: ClassVar[Mapping[str, str]] = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
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
            "explain",
            "privacy",
            "lora",
        }
    )
    reasons: ClassVar[Mapping[Feature, str]] = {"expert": "other models have no experts"}

    def matrix_shapes(self, config: LlamaConfig) -> Mapping[str, tuple[int, int]]:
        """Return the shapes of the matrices of attention and of the feed-forward network."""
        dim, ffn_dim = config.dim, config.ffn_dim
        columns = {"q": config.q_dim, "k": config.kv_dim, "v": config.kv_dim, "gate": ffn_dim, "up": ffn_dim}
        rows = {"o": config.q_dim, "down": ffn_dim}
        return {name: (size, dim) for name, size in columns.items()} | {n: (dim, size) for n, size in rows.items()}

    @property
    def config(self) -> type[LlamaConfig]:
        """Type of its resolved sizes."""
        return LlamaConfig
