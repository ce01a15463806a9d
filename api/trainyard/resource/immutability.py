"""Immutability of a spec while its job is active: a CEL transition rule, generated from the types.

A field is immutable unless it is marked: ``suspend: Annotated[bool, MUTABLE]``. The rule compares whole subtrees of
the new object (``self``) with the stored one (``oldSelf``), and descends only where a subtree holds a marked field.

Kubernetes compares an object without declared fields (``x-kubernetes-preserve-unknown-fields``) by its size and by the
keys that both sides have, so replacing a key goes unnoticed. `trainyard.base.OpaqueObject` therefore declares a map of
arbitrary values, whose keys and values the API server compares completely (`k8s.io/apiserver/pkg/cel/common`).
"""

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainyard.base import MUTABLE, models_in


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
