"""`spec.trainer.model.from`: weights with which a run begins."""

from typing import Annotated, ClassVar

from pydantic import Field

from trainyard.base import ApiModel, Rule
from trainyard.resource.urls import url_rule


class ModelSource(ApiModel):
    """Weights with which the run begins, in place of random values."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Path of a folder inside the worker container, which you mount with workers.template, or the URL of a folder in an
    object store, such as s3://bucket/model. A Hugging Face folder (config.json and files of safetensors) of the
    architectures LlamaForCausalLM, Qwen3ForCausalLM, MixtralForCausalLM or Qwen3MoeForCausalLM, an exported folder, a
    checkpoint of a run (step-...), or the folder of a run, whose newest checkpoint is meant. Fields of the model that
    the spec leaves out are the folder's. It is read at the beginning of a run only, not when a run is resumed."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (url_rule("path", "spec.trainer.model.from.path"),)
