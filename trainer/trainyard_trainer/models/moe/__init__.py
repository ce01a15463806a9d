"""The family `moe`."""

from trainyard_trainer.models.family import Family
from trainyard_trainer.models.moe.model import Moe
from trainyard_trainer.models.moe.parallelize import MoePlan
from trainyard_trainer.models.moe.state_dict import hugging_face_names

FAMILY = Family(
    build=lambda config, _shape, layers: Moe(config, layers),
    plan=MoePlan,
    hugging_face=hugging_face_names,
)
