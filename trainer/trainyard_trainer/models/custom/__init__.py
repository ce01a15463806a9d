"""The family `custom`: the model of `spec.trainer.module`, which replaces this entry when the module is loaded."""

from typing import Any, NoReturn

from trainyard.models.family import DataShape
from trainyard_trainer.models.family import Family, ParallelPlan
from trainyard_trainer.runtime.errors import ConfigError


def _build(_config: Any, _shape: DataShape, _layers: range) -> NoReturn:
    raise ConfigError(
        "spec.trainer.model.name: custom is the model of spec.trainer.module, but that has none; let its function "
        "return Plugin(model=...), or choose another model"
    )


FAMILY = Family(build=_build, plan=lambda _model: ParallelPlan())
