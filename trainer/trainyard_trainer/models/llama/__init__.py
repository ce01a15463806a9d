"""The family `llama`."""

from trainyard_trainer.models.family import Family
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.llama.parallelize import LlamaPlan
from trainyard_trainer.models.llama.state_dict import hugging_face_names

FAMILY = Family(
    build=lambda config, _shape, layers: Llama(config, layers),
    plan=LlamaPlan,
    hugging_face=hugging_face_names,
)
