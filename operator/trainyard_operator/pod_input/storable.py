"""The last line of defence of a status: values that the API server can store, whatever they were made from.

Each value is checked where it comes from. This module makes sure that one which was overlooked costs a part of one
status, and not the job: a refused status would be written again for ever.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar, cast, get_args

from annotated_types import MaxLen
from pydantic.fields import FieldInfo

from trainyard.base import ApiModel
from trainyard_operator.pod_input.numbers import finite
from trainyard_operator.pod_input.text import clean_text

MAX_TEXT: Final = 4096
"""Characters of a text whose field has no limit of its own."""
_INT32 = 2**31
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""RFC 3339 has no years before 0; times before this one occur nowhere."""

M = TypeVar("M", bound=ApiModel)


def storable(model: M) -> M:
    """Return a model whose values the API server can store: the same one if they already are."""
    values = {name: getattr(model, name) for name in type(model).model_fields}
    changes = {name: v for name, v in storable_values(type(model), values).items() if v is not values[name]}
    return model.replace(**changes) if changes else model


def storable_values(kind: type[ApiModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of the fields of a model, by their names in Python, as the API server can store them.

    Texts get one line and the length of their field, integers 32 bits; numbers that are not finite are left out. A
    value that needs no change is returned as it is.
    """
    return {name: _storable(value, _max_length(kind, name)) for name, value in values.items()}


def _storable(value: Any, max_length: int) -> Any:
    match value:
        case ApiModel():
            return storable(value)
        case bool() | Enum() | None:
            return value
        case str():
            cleaned = clean_text(value, max_length)
            return value if cleaned == value else cleaned
        case int():
            return value if -_INT32 <= value < _INT32 else max(-_INT32, min(value, _INT32 - 1))
        case float():
            return finite(value)
        case datetime():
            aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return aware if aware >= _EPOCH else _EPOCH
        case tuple():
            kept = tuple(_storable(item, MAX_TEXT) for item in value)
            return value if all(a is b for a, b in zip(kept, value, strict=True)) else kept
        case dict():
            kept_items = {key: v for key, v in value.items() if not isinstance(v, float) or finite(v) is not None}
            return value if len(kept_items) == len(value) else kept_items
    return value


@cache
def _max_length(kind: type[ApiModel], name: str) -> int:
    """Return the length that a text in a field may have."""
    field = kind.model_fields.get(name)
    limits = [] if field is None else [m.max_length for m in _metadata(field) if isinstance(m, MaxLen)]
    return min(limits, default=MAX_TEXT)


def _metadata(field: FieldInfo) -> Iterator[object]:
    """Yield the metadata of a field, and of the types within it: `str | None` has its limit inside."""
    yield from field.metadata
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        for extra in getattr(annotation, "__metadata__", ()):
            yield from extra.metadata if isinstance(extra, FieldInfo) else (extra,)
        pending += [cast("Any", part) for part in get_args(annotation)]
