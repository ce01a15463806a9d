"""The family `custom`: a model that the module of `spec.trainer.module` brings. Only the workers know its sizes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from trainyard.base import ApiModel
from trainyard.models.family import (
    CUSTOM,
    Activations,
    DataShape,
    Feature,
    MicroBatch,
    ModelConfig,
    ModelFamily,
    ModelPart,
    RankParameters,
)

_UNKNOWN = "only the workers know the blocks and experts of a custom model"


class CustomFields(ApiModel):
    """Fields of a custom model in spec.trainer.model: none, since spec.trainer.options is for all of the module."""


class CustomConfig(ModelConfig):
    """What is known of a custom model: the shape of its data."""

    name: Literal["custom"] = "custom"
    """Name of the family."""
    vocab_size: int
    """Entries of the tokenizer."""
    sequence_length: int
    """Tokens of one sample."""


class CustomFamily(ModelFamily[CustomConfig]):
    """A model of the user's own."""

    name: ClassVar[str] = CUSTOM
    description: ClassVar[str] = "the model of spec.trainer.module; its memory is not estimated"
    fields: ClassVar[type[ApiModel]] = CustomFields
    supports: ClassVar[frozenset[Feature]] = frozenset(
        {"tensor", "context", "parameterServer", "activationCheckpointing", "compile", "fullBatch"}
    )
    reasons: ClassVar[Mapping[Feature, str]] = {
        "pipeline": _UNKNOWN,
        "expert": _UNKNOWN,
        "privacy": "its layers may mix samples",
    }
    estimated: ClassVar[bool] = False

    @property
    def config(self) -> type[CustomConfig]:
        """Type of its configuration."""
        return CustomConfig

    def resolve(self, given: Mapping[str, Any], data: DataShape) -> CustomConfig:
        """Return the shape of the data."""
        return CustomConfig(vocab_size=data.vocabulary, sequence_length=data.sequence_length)

    def tokens_per_sample(self, config: CustomConfig) -> int:
        """Return the sequence length."""
        return config.sequence_length

    def active_parameters(self, config: CustomConfig) -> int:
        """Return 0: it is not known."""
        return 0

    def rank_parameters(self, config: CustomConfig, part: ModelPart) -> RankParameters:
        """Return nothing: it is not known."""
        return RankParameters()

    def flops_per_token(self, config: CustomConfig) -> int:
        """Return 0: it is not known."""
        return 0

    def activations(self, config: CustomConfig, batch: MicroBatch) -> Activations:
        """Return nothing: it is not known."""
        return Activations()
