"""Immutability of a spec while its job is active: a CEL transition rule, generated from the types.

A field is immutable unless it is marked: ``suspend: Annotated[bool, MUTABLE]``. The rule compares whole subtrees of
the new object (``self``) with the stored one (``oldSelf``), and descends only where a subtree holds a marked field.

Kubernetes compares an object without declared fields (``x-kubernetes-preserve-unknown-fields``) by its size and by the
keys that both sides have, so replacing a key goes unnoticed. `trainyard.base.OpaqueObject` therefore declares a map of
arbitrary values, whose keys and values the API server compares completely (`k8s.io/apiserver/pkg/cel/common`).
"""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainyard.base import MUTABLE, models_in
from trainyard.resource.spec import TrainingJobSpec


def unchanged(model: type[BaseModel], path: str) -> str:
    """Return a CEL expression that is true if no immutable field below `path` differs from the stored object."""
    return " && ".join(_comparisons(model, path))


def mutable_fields(model: type[BaseModel], path: str = "") -> list[str]:
    """Return the dotted paths of the fields that are marked as mutable, in the order of their declaration."""
    marked = []
    for name, field in model.model_fields.items():
        at = f"{path}.{field.alias or name}".lstrip(".")
        if MUTABLE in field.metadata:
            marked.append(at)
        else:
            marked += [found for child in models_in(field.annotation) for found in mutable_fields(child, at)]
    return marked


def immutable_part(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a spec (as JSON holds it) without the fields that may change while the job is active."""
    return _without(spec, _mutable_paths())


def with_mutable_part(spec: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a spec in which the fields that may change while the job is active have their live values."""
    return _with(_without(spec, _mutable_paths()), live, _mutable_paths())


def differences(before: Any, after: Any, path: str) -> list[str]:
    """Return the paths at which two JSON values differ: those of the innermost objects that both have."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [path]
    names = [*before, *(name for name in after if name not in before)]
    return [found for name in names for found in differences(before.get(name), after.get(name), f"{path}.{name}")]


@cache
def _mutable_paths() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path.split(".")) for path in mutable_fields(TrainingJobSpec))


def _without(value: dict[str, Any], paths: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Return a copy of a JSON object without the values at some paths."""
    result = {}
    for name, inner in value.items():
        below = tuple(path[1:] for path in paths if path[0] == name)
        if () in below:
            continue
        result[name] = _without(inner, below) if below and isinstance(inner, dict) else inner
    return result


def _with(value: dict[str, Any], source: dict[str, Any], paths: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Return a copy of a JSON object with the values that another one has at some paths."""
    result = dict(value)
    for first, *rest in paths:
        if first not in source:
            continue
        inner = result.get(first, {})
        result[first] = _with(inner, source[first], (tuple(rest),)) if rest else source[first]
    return result


def _comparisons(model: type[BaseModel], path: str) -> list[str]:
    """One CEL comparison for each field, or for each part of a field that holds a mutable one."""
    comparisons = []
    for name, field in model.model_fields.items():
        at = f"{path}.{field.alias or name}"
        # A marked field may change.
        if MUTABLE in field.metadata:
            continue
        children = [child for child in models_in(field.annotation) if mutable_fields(child)]
        # A field that holds a marked one is compared part by part.
        if children:
            assert isinstance(field.annotation, type), f"{at}: an optional field or a list cannot be compared in parts"
            comparisons += _comparisons(children[0], at)
        # Any other field is compared as a whole.
        else:
            comparisons.append(_equal(at, optional=_is_optional(field)))
    return comparisons


def _equal(path: str, *, optional: bool) -> str:
    equal = f"self.{path} == oldSelf.{path}"
    if not optional:
        return equal
    return f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || {equal})"


def _is_optional(field: FieldInfo) -> bool:
    """Whether the field may be absent from a stored object. Kubernetes fills in all other defaults."""
    return not field.is_required() and field.default is None
