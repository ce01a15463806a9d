"""The config.json of a Hugging Face folder: from the sizes of a decoder, and back.

A family says which architectures it has (`ModelFamily.architectures`), and adds to these fields what is its own.
"""

from collections.abc import Mapping
from typing import Any

from trainyard.models.decoder_sizes import DecoderConfig
from trainyard.models.rope_scaling import RopeScaling

Config = Mapping[str, Any]
"""The content of a config.json."""

_SIZES = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffnDim": "intermediate_size",
}
_SCALING = {
    "factor": "factor",
    "originalLength": "original_max_position_embeddings",
    "lowFreqFactor": "low_freq_factor",
    "highFreqFactor": "high_freq_factor",
    "betaSlow": "beta_slow",
    "betaFast": "beta_fast",
}
"""Fields of spec.trainer.model.ropeScaling, and their names there."""
_SCALING_FIELDS: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "originalLength", "lowFreqFactor", "highFreqFactor"}),
    "yarn": frozenset({"factor", "originalLength", "betaSlow", "betaFast"}),
}
"""The types of scaling, and the fields that each has."""
_ABSENT: tuple[Any, ...] = (None, False, 0)


def architecture(content: Config) -> str:
    """Return the name of the architecture, the class of transformers that has the model.

    Raises:
        ValueError: the config.json names none; the message says so.
    """
    names = content.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise ValueError("architectures: is absent; name the class of transformers that has the model")


def decoder_fields(content: Config) -> dict[str, Any]:
    """Return the sizes in the config.json of a decoder, by the names that they have in a resolved configuration.

    Raises:
        ValueError: a field is absent, or has a value that decoders here do not support; the message names it.
    """
    _check_values(content, {"hidden_act": "silu"}, default=True)
    _check_unused(content, "attention_bias", "mlp_bias", "use_sliding_window")
    if content.get("use_sliding_window") is None and content.get("sliding_window") is not None:
        raise ValueError(f"sliding_window: is {content['sliding_window']}, but attention here is over all positions")
    fields: dict[str, Any] = {here: positive(content, there) for here, there in _SIZES.items()}
    fields["kvHeads"] = positive(content, "num_key_value_heads", fields["heads"])
    fields["headDim"] = positive(content, "head_dim", fields["dim"] // fields["heads"])
    fields["normEps"] = number(content, "rms_norm_eps", 1e-6)
    fields["tiedEmbeddings"] = bool(content.get("tie_word_embeddings", False))
    fields["vocabSize"] = positive(content, "vocab_size")
    fields["sequenceLength"] = positive(content, "max_position_embeddings")
    return fields | _rope(content)


def positive(content: Config, name: str, default: int | None = None) -> int:
    """Return a whole number above 0, or the default if it is absent.

    Raises:
        ValueError: it is absent and has no default, or has another value.
    """
    value = content.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: must be a whole number above 0, but is {value}")
    return value


def number(content: Config, name: str, default: float) -> float:
    """Return a number above 0, or the default if it is absent.

    Raises:
        ValueError: it has another value.
    """
    value = content.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name}: must be a number above 0, but is {value}")
    return float(value)


def check_values(content: Config, wanted: Mapping[str, Any]) -> None:
    """Check that fields have the values that models here have.

    Raises:
        ValueError: one has another value, or is absent; the message names it and the value.
    """
    _check_values(content, wanted, default=False)


def _check_values(content: Config, wanted: Mapping[str, Any], *, default: bool) -> None:
    for name, value in wanted.items():
        found = content.get(name, value if default else None)
        if found != value:
            raise ValueError(f"{name}: is {found}, but models here have {value} only")


def _check_unused(content: Config, *names: str) -> None:
    for name in names:
        if content.get(name) not in _ABSENT:
            raise ValueError(f"{name}: is {content[name]}, which models here do not have")


def _rope(content: Config) -> dict[str, Any]:
    """Return the base of the rotary frequencies and their scaling, which older versions of transformers name apart."""
    found = content.get("rope_parameters") or content.get("rope_scaling") or {}
    parameters = found if isinstance(found, dict) else {"rope_type": found}
    theta = number(parameters, "rope_theta", number(content, "rope_theta", 10_000.0))
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return {"ropeTheta": theta}
    if kind not in _SCALING_FIELDS:
        known = ", ".join(_SCALING_FIELDS)
        raise ValueError(f"rope_parameters: rope_type is {kind}, but models here have {known} only")
    for name in ("attention_factor", "mscale", "mscale_all_dim", "partial_rotary_factor"):
        if parameters.get(name) not in (*_ABSENT, 1, 1.0):
            raise ValueError(f"rope_parameters: {name} is {parameters[name]}, which models here do not have")
    values = {here: parameters.get(_SCALING[here]) for here in sorted(_SCALING_FIELDS[kind])}
    if kind == "yarn" and values["originalLength"] is None:
        values["originalLength"] = content.get("max_position_embeddings")
    given = {"type": kind, **{here: value for here, value in values.items() if value is not None}}
    try:
        scaling = RopeScaling.model_validate(given)
    except ValueError as error:
        raise ValueError(f"rope_parameters: {given} is not a valid scaling") from error
    return {"ropeTheta": theta, "ropeScaling": scaling.to_dict()}


def decoder_config(config: DecoderConfig, name: str, model_type: str) -> dict[str, Any]:
    """Return what the config.json of a decoder says.

    Args:
        config: sizes of the model.
        name: its architecture.
        model_type: name of that architecture's configuration.
    """
    sizes = config.to_dict()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling.to_dict()
        rope["rope_type"] = scaling["type"]
        rope |= {_SCALING[here]: value for here, value in scaling.items() if here != "type"}
        # What transformers demands has the defaults that it has here.
        if scaling["type"] == "llama3":
            rope = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **rope}
    return {
        "architectures": [name],
        "model_type": model_type,
        **{there: sizes[here] for here, there in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.sequence_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }
