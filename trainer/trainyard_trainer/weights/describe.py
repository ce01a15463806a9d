"""What a manifest says to begin with the weights of a folder."""

from pathlib import Path
from typing import Any

from trainyard.models import FAMILIES as FAMILY_TYPES
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.weights.weights import Weights


def describe(weights: Weights) -> dict[str, Any]:
    """Return fields of spec.trainer: the model with its preset, or else with its sizes, and its tokenizer."""
    family, sizes = FAMILY_TYPES[weights.family], weights.config.to_dict()
    own = family.own_fields(sizes)
    matching = [name for name, shape in family.presets.items() if shape.items() <= own.items()]
    # A preset without a scaling also matches weights that have one.
    exact = [name for name in matching if ("ropeScaling" in own) == ("ropeScaling" in family.presets[name])]
    model: dict[str, Any] = {"name": weights.family}
    if exact:
        preset = exact[-1]
        rest = {name: value for name, value in own.items() if name not in family.presets[preset]}
        model |= {"preset": preset, **{name: value for name, value in rest.items() if not _follows(name, value, sizes)}}
    else:
        model |= own
    model["from"] = {"path": _complete(weights.path)}
    fields: dict[str, Any] = {"model": model}
    if "vocabSize" in sizes:
        data: dict[str, Any] = {"vocabSize": sizes["vocabSize"]}
        if weights.tokenizer_location is not None:
            data = {"tokenizer": "file", "tokenizerFile": _complete(weights.tokenizer_location), **data}
        fields["data"] = data
    return fields


def _complete(path: Location) -> str:
    """Return an absolute path, or a URL."""
    return str(path.absolute() if isinstance(path, Path) else path)


def _follows(name: str, value: Any, sizes: dict[str, Any]) -> bool:
    """Return whether a size is what it would be without being said."""
    if name == "headDim":
        return bool(value == sizes["dim"] // sizes["heads"])
    return name == "balanceLossWeight"
