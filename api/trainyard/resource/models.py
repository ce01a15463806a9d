"""`spec.trainer.model`: which model, and its sizes."""

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Positive, Rule

TRANSFORMER_SIZES = ("dim", "layers", "heads", "kvHeads", "ffnDim")
MOE_SIZES = ("experts", "expertsPerToken")
TRANSFORMERS = ("llama", "moe")


@cache
def presets() -> dict[str, dict[str, dict[str, int]]]:
    """The model presets, by model and preset name, in the CRD's field names."""
    text = files("trainyard").joinpath("presets.json").read_text("utf-8")
    table: dict[str, dict[str, dict[str, int]]] = json.loads(text)
    return table


def size_in_cel(field: str) -> str:
    """A size of the model as rules of the whole spec see it: the user's, or that of the preset, which must be known.

    (See `preset_is_known`.)
    """
    model = "self.trainer.model"
    preset = f"(has({model}.preset) ? {model}.preset : '{DEFAULT_PRESET}')"
    table = _table_in_cel("moe", field)
    if field in TRANSFORMER_SIZES:
        table = f"({model}.name == 'moe' ? {table} : {_table_in_cel('llama', field)})"
    return f"(has({model}.{field}) ? {model}.{field} : {table}[{preset}])"


def _table_in_cel(model: str, field: str) -> str:
    return "{" + ", ".join(f"'{name}': {sizes[field]}" for name, sizes in presets()[model].items()) + "}"


def preset_is_known(model: str) -> str:
    """In CEL: whether the preset of a transformer, if there is one, is one of its own."""
    of = {name: list(presets()[name]) for name in TRANSFORMERS}
    return f"(!has({model}.preset) || {model}.preset in ({model}.name == 'moe' ? {of['moe']} : {of['llama']}))"


DEFAULT_PRESET = "tiny"


def _only_for(names: tuple[str, ...], fields: tuple[str, ...]) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            f"!has(self.{field}) || self.name in {list(names)}",
            f"spec.trainer.model.{field}: is for {' and '.join(names)} only; remove it, or set "
            f"spec.trainer.model.name: {' or '.join(names)}",
        )
        for field in fields
    )


class Model(ApiModel):
    """What is trained."""

    name: Literal["llama", "moe", "mlp"]
    """llama: a Llama-shaped decoder (RMSNorm, rotary positions, grouped-query attention, SwiGLU) that predicts the next
    token. moe: the same with many experts in place of each feed-forward network, of which a token uses a few (as in
    Mixtral). mlp: dense layers with ReLU that tell classes apart; they give logits, the softmax belongs to the loss."""
    preset: Literal["nano", "tiny", "small", "medium", "1b", "8b", "70b", "8x7b", "8x22b"] | None = None
    """llama, moe: sizes to start from (tiny if absent); any of the fields below overrides one of them. Only llama has 1b,
    8b and 70b, only moe has 8x7b and 8x22b."""
    dim: Positive | None = None
    """llama, moe: width of the residual stream."""
    layers: Positive | None = None
    """llama, moe: number of transformer blocks."""
    heads: Positive | None = None
    """llama, moe: query heads of each attention."""
    kv_heads: Positive | None = None
    """llama, moe: key and value heads, each shared by heads / kvHeads query heads (grouped-query attention)."""
    ffn_dim: Positive | None = None
    """llama: hidden width of the feed-forward network. moe: that of each expert."""
    experts: Annotated[int, Field(ge=2, le=4096)] | None = None
    """moe: experts of each layer."""
    experts_per_token: Positive | None = None
    """moe: experts that each token goes through; no token is dropped."""
    balance_loss_weight: Annotated[float, Field(ge=0, le=1000)] | None = None
    """moe: coefficient of the loss that evens out the load of the experts of each layer, over every sequence
    (DeepSeek-V3, 2024); 0.01 if absent. The loss that is reported is the cross-entropy alone."""
    hidden_sizes: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)] | None = None
    """mlp: widths of the hidden layers; [64, 64] if absent."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        *_only_for(TRANSFORMERS, ("preset", *TRANSFORMER_SIZES)),
        *_only_for(("moe",), (*MOE_SIZES, "balanceLossWeight")),
        *_only_for(("mlp",), ("hiddenSizes",)),
        Rule(
            f"!(self.name in {list(TRANSFORMERS)}) || {preset_is_known('self')}",
            f"spec.trainer.model.preset: llama has {', '.join(presets()['llama'])}, and moe has "
            f"{', '.join(presets()['moe'])}; choose one of them, or another spec.trainer.model.name",
        ),
        Rule(
            "self.name != 'moe' || ((!has(self.dim) || self.dim % 8 == 0) &&"
            " (!has(self.ffnDim) || self.ffnDim % 8 == 0))",
            "spec.trainer.model: dim and ffnDim of a moe must be multiples of 8, so that the matrices of all experts "
            "can be multiplied at once; change them",
        ),
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
