"""`spec.trainer.model`: which model, and its sizes."""

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule

GPT_SIZES = ("dim", "layers", "heads", "kvHeads", "ffnDim")


@cache
def presets() -> dict[str, dict[str, dict[str, int]]]:
    """The model presets, by model and preset name, in the CRD's field names."""
    text = files("trainyard").joinpath("presets.json").read_text("utf-8")
    table: dict[str, dict[str, dict[str, int]]] = json.loads(text)
    return table


def size_in_cel(field: str) -> str:
    """A size of the model as rules of the whole spec see it: the user's, or that of the preset."""
    table = ", ".join(f"'{name}': {sizes[field]}" for name, sizes in presets()["gpt"].items())
    model = "self.trainer.model"
    preset = f"(has({model}.preset) ? {model}.preset : '{DEFAULT_PRESET}')"
    return f"(has({model}.{field}) ? {model}.{field} : {{{table}}}[{preset}])"


DEFAULT_PRESET = "tiny"


def _only_for(name: str, fields: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            f"!has(self.{field}) || self.name == '{name}'",
            f"spec.trainer.model.{field}: is a size of {name} only; remove it, or set spec.trainer.model.name: {name}",
        )
        for field in fields
    )


class Model(ApiModel):
    """What is trained."""

    name: Literal["gpt", "mlp"]
    """gpt: a Llama-shaped decoder (RMSNorm, rotary positions, grouped-query attention, SwiGLU) that predicts the next
    token. mlp: dense layers with ReLU that tell classes apart; they give logits, the softmax belongs to the loss."""
    preset: Literal["nano", "tiny", "small", "medium", "1b", "8b", "70b"] | None = None
    """gpt: sizes to start from (tiny if absent); any of the fields below overrides one of them."""
    dim: Positive | None = None
    """gpt: width of the residual stream."""
    layers: Positive | None = None
    """gpt: number of transformer blocks."""
    heads: Positive | None = None
    """gpt: query heads of each attention."""
    kv_heads: Positive | None = None
    """gpt: key and value heads, each shared by heads / kvHeads query heads (grouped-query attention)."""
    ffn_dim: Positive | None = None
    """gpt: hidden width of the feed-forward network."""
    hidden: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)] | None = None
    """mlp: widths of the hidden layers; [64, 64] if absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *_only_for("gpt", ("preset", *GPT_SIZES)),
        *_only_for("mlp", ("hidden",)),
        Rule(
            "!has(self.dim) || !has(self.heads) || self.dim % (2 * self.heads) == 0",
            "spec.trainer.model.dim: must be a multiple of 2 x heads (rotary positions need heads of even "
            "width); change dim or heads",
        ),
        Rule(
            "!has(self.heads) || !has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "spec.trainer.model.heads: must be a multiple of kvHeads; change heads or kvHeads",
        ),
    )
