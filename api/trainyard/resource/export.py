"""`spec.trainer.export`: what is written for other programs at the end of a run."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule
from trainyard.models import FAMILIES
from trainyard.resource.urls import url_rule
from trainyard.text import listed

Format = Literal["huggingface", "peft"]
"""Form of an exported folder."""
Dtype = Literal["float32", "bfloat16"]
"""Data type of exported tensors."""
EXPORTED = [name for name, family in FAMILIES.items() if family.architectures]
"""Families whose weights can be exported."""


class Export(ApiModel):
    """Weights for other programs, written when the training is complete: a folder that transformers loads."""

    format: Format = "huggingface"
    """Form of the folder. huggingface: config.json, files of safetensors, tokenizer and model card; of an mlp also
    model.pt2, a program for torch.export.load; adapters (spec.trainer.model.lora) are merged into the weights. peft:
    the adapters alone, as PeftModel.from_pretrained reads them. Defaults to huggingface."""
    path: Annotated[str, Field(min_length=2, max_length=4096, pattern="^(/|[a-z0-9]+://)")] | None = None
    """Absolute path of the folder inside the worker container, where you mount a volume with workers.template, or the
    URL of a folder in an object store, such as s3://bucket/model. Defaults to the folder `export` in the job's folder
    of the checkpoints."""
    dtype: Dtype = "float32"
    """Data type of the tensors. Training keeps parameters in float32; bfloat16 halves the size, and rounds them.
    Defaults to float32."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (url_rule("path", "spec.trainer.export.path"),)


EXPORT_RULES: tuple[Rule, ...] = (
    Rule(
        f"!has(self.trainer) || !has(self.trainer.export) || self.trainer.model.name in {EXPORTED}",
        f"spec.trainer.export: is for {listed(EXPORTED)} only, since other programs know no other model; remove it",
    ),
    Rule(
        "!has(self.trainer) || !has(self.trainer.export) || self.trainer.export.format != 'peft' ||"
        " has(self.trainer.model.lora)",
        "spec.trainer.export.format: peft is the format of adapters alone; set spec.trainer.model.lora, or choose "
        "huggingface",
    ),
    Rule(
        "!has(self.trainer) || !has(self.trainer.export) || has(self.checkpoint)",
        "spec.trainer.export: is made from the last checkpoint, so that no rank needs memory for the whole model; add "
        "spec.checkpoint, or remove it",
    ),
)
"""Rules about it, `self` being a spec."""
