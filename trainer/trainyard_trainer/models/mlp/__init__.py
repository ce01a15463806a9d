"""The family `mlp`."""

from trainyard.models.family import DataShape
from trainyard.models.mlp import MlpConfig
from trainyard_trainer.models.family import Family, ParallelPlan
from trainyard_trainer.models.mlp.model import Mlp


def _build(config: MlpConfig, shape: DataShape, _layers: range) -> Mlp:
    assert shape.features is not None
    assert shape.classes is not None
    return Mlp(shape.features, config.hidden_sizes, shape.classes)


FAMILY = Family(build=_build, plan=lambda _model: ParallelPlan())
