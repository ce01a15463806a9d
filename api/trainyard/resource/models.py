"""`spec.trainer.model`: its fields and rules, made from the registry of model families."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from trainyard.base import ApiModel, Rule
from trainyard.models import FAMILIES
from trainyard.models.family import DEFAULT_PRESET, Feature
from trainyard.resource.lora import Lora
from trainyard.resource.model_source import ModelSource
from trainyard.text import listed

_FROM = [name for name, family in FAMILIES.items() if family.architectures]
"""Families that can begin with weights of a folder."""


def families_with(feature: Feature) -> list[str]:
    """Return the names of the families that support a feature."""
    return [name for name, family in FAMILIES.items() if feature in family.supports]


def reasons_against(feature: Feature) -> str:
    """Return why the other families do not support a feature, in parentheses; empty if no family says so."""
    reasons = dict.fromkeys(
        family.reasons[feature]
        for family in FAMILIES.values()
        if feature not in family.supports and feature in family.reasons
    )
    return f" ({'; '.join(reasons)})" if reasons else ""


def preset_is_known(model: str) -> str:
    """Return a CEL expression: whether the preset of a model, if there is one, is one of its family's."""
    presets = {name: list(family.presets) for name, family in FAMILIES.items() if family.presets}
    return f"(!has({model}.preset) || !({model}.name in {list(presets)}) || {model}.preset in {presets}[{model}.name])"


def size_in_cel(field: str) -> str:
    """Return a CEL expression for a size of the model in rules of a whole spec: the user's, or the preset's.

    It can be evaluated if the family has the size and `preset_is_known`.
    """
    model = "self.trainer.model"
    preset = f"(has({model}.preset) ? {model}.preset : '{DEFAULT_PRESET}')"
    table = {
        name: {preset: sizes[field] for preset, sizes in family.presets.items()}
        for name, family in FAMILIES.items()
        if family.presets and all(field in sizes for sizes in family.presets.values())
    }
    return f"(has({model}.{field}) ? {model}.{field} : {_in_cel(table)}[{model}.name][{preset}])"


def is_known_in_cel(fields: Iterable[str]) -> str:
    """Return a CEL expression: whether the spec says what some sizes are, which else only spec.trainer.model.from does.

    Rules about sizes that are not known are checked by the workers, when they have read the folder.
    """
    model = "self.trainer.model"
    given = " && ".join(f"has({model}.{field})" for field in fields)
    return f"(!has({model}.from) || has({model}.preset) || ({given}))"


def _in_cel(value: Any) -> str:
    """Return a table, a text, a number or a truth value as CEL writes it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_in_cel(key)}: {_in_cel(entry)}' for key, entry in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _owners() -> dict[str, list[tuple[str, FieldInfo]]]:
    """Return the families that have each field (by its Python name), with their definitions of it."""
    owners: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name, family in FAMILIES.items():
        for field, info in family.fields.model_fields.items():
            owners.setdefault(field, []).append((name, info))
    return owners


def _describe(definitions: Iterable[tuple[str, FieldInfo]]) -> str:
    """Return the documentation of a field: `llama, moe: TEXT`, and a line for each family that defines it otherwise."""
    names: dict[str, list[str]] = {}
    for name, info in definitions:
        names.setdefault(info.description or "", []).append(name)
    return "\n\n".join(f"{', '.join(owners)}: {text}" for text, owners in names.items())


def _fields() -> dict[str, Any]:
    with_presets = [name for name, family in FAMILIES.items() if family.presets]
    presets = dict.fromkeys(preset for family in FAMILIES.values() for preset in family.presets)
    lists = [f"{name} has {', '.join(FAMILIES[name].presets)}." for name in with_presets]
    fields: dict[str, Any] = {
        "name": (
            Literal[tuple(FAMILIES)],
            Field(description="\n\n".join(f"{name}: {family.description}." for name, family in FAMILIES.items())),
        ),
        "preset": (
            Literal[tuple(presets)] | None,
            Field(
                default=None,
                description=f"{', '.join(with_presets)}: named set of sizes to start from; each of the other fields "
                f"overrides one of them. Default: {DEFAULT_PRESET}. {' '.join(lists)}",
            ),
        ),
    }
    adapted = f"{', '.join(families_with('lora'))}: {inspect.cleandoc(Lora.__doc__ or '')}"
    fields["lora"] = (Lora | None, Field(default=None, description=adapted))
    fields["from_"] = (
        ModelSource | None,
        Field(
            default=None, alias="from", description=f"{listed(_FROM)}: {inspect.cleandoc(ModelSource.__doc__ or '')}"
        ),
    )
    for field, definitions in _owners().items():
        first = definitions[0][1]
        if any((info.annotation, info.metadata) != (first.annotation, first.metadata) for _, info in definitions):
            raise TypeError(f"spec.trainer.model.{first.alias}: families define it differently; rename it in one")
        fields[field] = (first.annotation, _with_description(first, _describe(definitions)))
    return fields


def _with_description(info: FieldInfo, description: str) -> FieldInfo:
    """Return a field's definition (its default and limits) with other documentation."""
    return FieldInfo.merge_field_infos(info, description=description)


def _only_for(field: str, names: list[str]) -> Rule:
    return Rule(
        f"!has(self.{field}) || self.name in {names}",
        f"spec.trainer.model.{field}: is for {listed(names)} only; remove it, or set "
        f"spec.trainer.model.name: {listed(names, 'or')}",
    )


def _rules() -> tuple[Rule, ...]:
    with_presets = [name for name, family in FAMILIES.items() if family.presets]
    lists = ", and ".join(f"{name} has {', '.join(FAMILIES[name].presets)}" for name in with_presets)
    owned = {definitions[0][1].alias or field: [n for n, _ in definitions] for field, definitions in _owners().items()}
    shared_fields = {"preset": with_presets, "from": _FROM, "lora": families_with("lora")}
    shared: dict[Rule, list[str]] = {}
    for name, family in FAMILIES.items():
        for rule in family.size_rules:
            shared.setdefault(rule, []).append(name)
    return (
        *(_only_for(field, names) for field, names in {**shared_fields, **owned}.items()),
        Rule(
            "!has(self.lora) || has(self.from)",
            "spec.trainer.model.lora: adapters are trained beside weights that exist; set spec.trainer.model.from, or "
            "remove lora to train all parameters",
        ),
        Rule(
            preset_is_known("self"),
            f"spec.trainer.model.preset: {lists}; choose one of them, or another spec.trainer.model.name",
        ),
        *(Rule(f"!(self.name in {names}) || ({rule.cel})", rule.message) for rule, names in shared.items()),
    )


class _Model(ApiModel):
    """The model: its family, and its sizes."""

    name: str
    preset: str | None = None
    from_: Annotated[ModelSource | None, Field(alias="from")] = None
    lora: Lora | None = None


if TYPE_CHECKING:
    Model = _Model
else:
    Model = create_model("Model", __base__=_Model, __doc__=_Model.__doc__, __module__=__name__, **_fields())
    Model.cel_rules = _rules()
