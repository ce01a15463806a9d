"""The family `mlp`."""

from trainyard.models.family import DataShape
from trainyard.models.mlp import MlpConfig
from trainyard_trainer.models.family import Family, ParallelPlan
from trainyard_trainer.models.mlp.model import Mlp
from trainyard_trainer.models.names import HuggingFaceNames


def _build(config: MlpConfig, shape: DataShape, _layers: range) -> Mlp:
    assert shape.features is not None
    assert shape.classes is not None
    return Mlp(shape.features, config.hidden_sizes, shape.classes)


def _names(config: MlpConfig) -> HuggingFaceNames:
    """Return the names in an exported folder, which are the same as here: transformers has no such model."""
    layers = range(len(config.hidden_sizes) + 1)
    names = {name: name for layer in layers for name in (f"dense.{layer}.weight", f"dense.{layer}.bias")}
    return HuggingFaceNames("TrainyardMlp", outer=names, block={})


FAMILY = Family(build=_build, plan=lambda _model: ParallelPlan(), hugging_face=_names)
