"""Base of all API types: immutable pydantic models whose validation rules are CEL expressions."""

from datetime import datetime
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

from trainyard.time import format_time

MAX_QUANTITY = 1_000_000_000_000_000
"""Largest quantity that can be written as a number. The API server reads the limits of a schema as floating-point
numbers, which changes larger ones."""
POSITIVE_INT32 = 2_147_483_647
"""Largest integer of 32 bits, the upper limit of integers in the API."""


class Rule(NamedTuple):
    """A validation rule over several fields of one object, in the Common Expression Language (CEL).

    The CRD generator writes it to ``x-kubernetes-validations``, where the API server enforces it; `trainyard.admission`
    evaluates the same expression for runs without a cluster. `message` names the field by its full path, the rule, and
    the fix.
    """

    cel: str
    message: str
    message_cel: str = ""
    """CEL expression for the message, where it depends on the object; `message` is used if it cannot be evaluated."""

    @property
    def is_transition(self) -> bool:
        """Whether the rule compares with the stored object (``oldSelf``), so that it applies to updates only."""
        return "oldSelf" in self.cel


class ApiModel(BaseModel):
    """Base of all types of the resource: immutable, camelCase in JSON, snake_case in Python, unknown fields refused.

    A reader of stored objects, which another version may have written, ignores unknown fields instead:
    ``model_validate(body, extra="ignore")``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = ()
    """Validation rules of the type. `self` in an expression is the object."""

    def to_dict(self) -> dict[str, Any]:
        """Return the object as JSON holds it: camelCase keys, with defaults, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed (names as in Python); values are trusted, not validated.

        Raises:
            TypeError: a name is not a field of this type.
        """
        if unknown := changes.keys() - type(self).model_fields.keys():
            raise TypeError(f"{type(self).__name__} has no field named {', '.join(sorted(unknown))}")
        return self.model_copy(update=changes)


class _Mutable(NamedTuple):
    """Type of the marker `MUTABLE`."""

    mutable: bool = True


MUTABLE = _Mutable()
"""Marks a field of a spec that may change while the job is active: ``Annotated[bool, MUTABLE]``. All other fields are
immutable then (see `trainyard.resource.immutability`)."""

PART_OF_POD = "x-trainyard-part-of-pod"
"""Marks a schema without declared fields in `json_schema_extra`: its content becomes a part of each pod, and so the API
server checks it when the operator sends a pod as a dry run. The CRD generator refuses other schemas of that kind."""

OpaqueObject = Annotated[
    dict[str, Any],
    Field(
        max_length=128,
        json_schema_extra={
            "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True},
            PART_OF_POD: True,
        },
    ),
]
"""Part of a pod whose fields Trainyard does not declare, for example its spec. The API server checks it in a dry run
before the job starts."""


def models_in(annotation: Any) -> list[type["ApiModel"]]:
    """Return the API types that a field's annotation names: none for a plain value, else usually one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation] if issubclass(annotation, ApiModel) else []
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


def unknown_fields(model: type[ApiModel], body: dict[str, Any], path: str) -> list[str]:
    """Return the paths of the fields in `body` that a type does not have, at any depth, such as ``spec.workers.speed``.

    `path` is the path of `body` itself.
    """
    found = []
    known = _types_by_field(model)
    for name, value in body.items():
        at = f"{path}.{name}"
        if name not in known:
            found.append(at)
        for nested in known.get(name, ()):
            if isinstance(value, dict):
                found += unknown_fields(nested, value, at)
            for index, item in enumerate(value if isinstance(value, list) else ()):
                found += unknown_fields(nested, item, f"{at}[{index}]") if isinstance(item, dict) else []
    return found


@cache
def _types_by_field(model: type[ApiModel]) -> dict[str, list[type[ApiModel]]]:
    """Return the API types inside each field of a type, by the name of the field in JSON."""
    return {field.alias or name: models_in(field.annotation) for name, field in model.model_fields.items()}


Positive = Annotated[int, Field(ge=1, le=POSITIVE_INT32)]
"""An integer of 32 bits, at least 1."""
NonNegative = Annotated[int, Field(ge=0, le=POSITIVE_INT32)]
"""An integer of 32 bits, at least 0, that a user sets."""
Tokens = Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
"""A number of tokens that a user sets."""
Count = Annotated[int, Field(ge=0, le=POSITIVE_INT32)]
"""An integer of 32 bits, at least 0, that a program counts."""


Timestamp = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
"""A time in UTC with a resolution of one second, in JSON as RFC 3339, as in the Kubernetes API."""
