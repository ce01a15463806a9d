"""The family `mlp`: dense layers that classify the rows of a table."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive
from trainyard.models.family import (
    FULL_BYTES,
    Activations,
    DataShape,
    Feature,
    MicroBatch,
    ModelConfig,
    ModelFamily,
    ModelPart,
    RankParameters,
)
from trainyard.models.hugging_face import positive

DEFAULT_HIDDEN_SIZES = (64, 64)


class MlpFields(ApiModel):
    """Fields of an mlp in spec.trainer.model."""

    hidden_sizes: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)] | None = None
    """Widths of the hidden layers, from the first to the last. Default: [64, 64]."""


class MlpConfig(ModelConfig):
    """Resolved sizes of an mlp."""

    name: Literal["mlp"] = "mlp"
    """Name of the family."""
    hidden_sizes: tuple[int, ...]
    """Widths of the hidden layers."""
    features: int | None = None
    """Columns of the table; None if only the worker knows them."""
    classes: int | None = None
    """Classes of the table; None if only the worker knows them."""


_TOO_SMALL = "an mlp is too small to split"


class MlpFamily(ModelFamily[MlpConfig]):
    """Multi-layer perceptron."""

    name: ClassVar[str] = "mlp"
    description: ClassVar[str] = (
        "a multi-layer perceptron (dense layers with ReLU) that classifies the rows of a table; it gives logits, the "
        "softmax is a part of the loss"
    )
    fields: ClassVar[type[ApiModel]] = MlpFields
    data_source: ClassVar[Literal["text", "table"]] = "table"
    supports: ClassVar[frozenset[Feature]] = frozenset({"parameterServer", "fullBatch", "explain", "privacy"})
    reasons: ClassVar[Mapping[Feature, str]] = {
        "tensor": _TOO_SMALL,
        "context": _TOO_SMALL,
        "pipeline": _TOO_SMALL,
        "expert": "other models have no experts",
        "activationCheckpointing": "an mlp has no blocks",
        "compile": "an mlp has no blocks",
    }

    architectures: ClassVar[Mapping[str, str]] = {"TrainyardMlp": "trainyard_mlp"}

    @property
    def config(self) -> type[MlpConfig]:
        """Type of its resolved sizes."""
        return MlpConfig

    def resolve(self, given: Mapping[str, Any], data: DataShape) -> MlpConfig:
        """Return the user's sizes, and those of the data."""
        hidden = given.get("hiddenSizes") or DEFAULT_HIDDEN_SIZES
        return MlpConfig(hidden_sizes=tuple(hidden), features=data.features, classes=data.classes)

    def sizes_of_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the width of the table and its classes."""
        matrices = [shape for shape in shapes.values() if len(shape) == 2]
        return {"features": matrices[0][1], "classes": matrices[-1][0]} if matrices else {}

    def from_hugging_face(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sizes in a config.json, which only Trainyard writes and reads."""
        widths = content.get("hidden_sizes")
        if not isinstance(widths, list) or not widths:
            raise ValueError("hidden_sizes: must be a list of whole numbers above 0")
        sizes = [positive({"hidden_sizes": width}, "hidden_sizes") for width in widths]
        return {"hiddenSizes": sizes, **{name: positive(content, name) for name in ("features", "classes")}}

    def to_hugging_face(self, config: MlpConfig) -> dict[str, Any]:
        """Return the content of a config.json."""
        ((name, kind),) = self.architectures.items()
        sizes = {"features": config.features, "hidden_sizes": list(config.hidden_sizes), "classes": config.classes}
        return {"architectures": [name], "model_type": kind, **sizes}

    def active_parameters(self, config: MlpConfig) -> int:
        """Return the number of scalars; between hidden layers alone, if the width of the data is not known."""
        sizes = config.hidden_sizes
        if config.features is not None and config.classes is not None:
            sizes = (config.features, *sizes, config.classes)
        return sum((width + 1) * next_width for width, next_width in pairwise(sizes))

    def rank_parameters(self, config: MlpConfig, part: ModelPart) -> RankParameters:
        """Return the sizes of the model, which is never split."""
        return RankParameters(head=self.active_parameters(config))

    def flops_per_token(self, config: MlpConfig) -> int:
        """Return the floating-point operations of one row: 6 for each parameter."""
        return 6 * self.active_parameters(config)

    def activations(self, config: MlpConfig, batch: MicroBatch) -> Activations:
        """Return the memory of the results of each layer, of its ReLU, and of their gradients."""
        return Activations(block=FULL_BYTES * 3 * batch.samples * sum(config.hidden_sizes))
