"""Single changes to the spec of a TrainingJob, derived from the schema of the CRD: at least one for every field."""

import copy
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainyard.crd import Schema, openapi_schema

Path = tuple[str | int, ...]

_STRINGS = ("a", "b", "other", "/a", "/b", "1Gi", "2Gi", "a:b", "a.b:c", "a/b", "a.b/c")
"""Values for strings: for each pattern and enumeration of the schema, two of them match."""


class Change(NamedTuple):
    """A spec that differs from another one in a single field."""

    path: Path
    kind: str
    spec: dict[str, Any]

    @property
    def field(self) -> str:
        """Dotted path of the field, without indexes: workers.template.spec."""
        return ".".join(part for part in self.path if isinstance(part, str))

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.path))}"


def spec_schema() -> Schema:
    """Return the schema of spec."""
    schema: Schema = openapi_schema()["properties"]["spec"]
    return schema


def leaves(schema: Schema, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every field that has no declared fields of its own. Items of a list have index 0."""
    if "properties" in schema:
        for name, child in schema["properties"].items():
            yield from leaves(child, (*path, name))
    elif "properties" in schema.get("items", {}):
        yield from leaves(schema["items"], (*path, 0))
    else:
        yield path


def changes(spec: dict[str, Any]) -> Iterator[Change]:
    """Yield, for every field of the schema, a copy of `spec` with another value, without it, and with it added."""
    for path in leaves(spec_schema()):
        schemas = _schemas(path)
        value = _get(spec, path)
        # An absent field is added, with what its parents require.
        if value is None:
            yield Change(path, "add", _with(spec, path, _sample(schemas[-1])))
            continue
        for number, other in enumerate(_others(schemas[-1], value), 1):
            yield Change(path, f"change {number}", _with(spec, path, other))
        # A field with a default cannot be removed: the API server puts it back.
        name = path[-1]
        if name not in schemas[-2].get("required", ()) and "default" not in schemas[-1]:
            yield Change(path, "remove", _with(spec, path, None))


def _schemas(path: Path) -> list[Schema]:
    """Return the schema of spec and of each field on the path to a field."""
    found = [spec_schema()]
    for part in path:
        found.append(found[-1]["items"] if isinstance(part, int) else found[-1]["properties"][part])
    return found


def _get(value: Any, path: Path) -> Any:
    for part in path:
        if not value:
            return None
        value = value[part] if isinstance(part, int) else value.get(part)
    return value


def _with(spec: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy of a spec in which one field has another value; None removes it."""
    result = copy.deepcopy(spec)
    node: Any = result
    schemas = _schemas(path)
    for number, part in enumerate(path[:-1], 1):
        if isinstance(part, int):
            if not node:
                node.append(_sample(schemas[number]))
        elif part not in node:
            node[part] = [] if "items" in schemas[number] else _sample(schemas[number])
        node = node[part]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return result


def _sample(schema: Schema) -> Any:
    """Return a value that fits a schema, as small as possible."""
    if "default" in schema:
        return copy.deepcopy(schema["default"])
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("x-kubernetes-int-or-string"):
        return 1
    match schema.get("type"):
        case "object" if "properties" in schema:
            return {name: _sample(schema["properties"][name]) for name in schema.get("required", ())}
        case "object" if "additionalProperties" in schema:
            return {"a": _sample(schema["additionalProperties"])}
        case "array":
            return [_sample(schema["items"])] * max(1, schema.get("minItems", 1))
        case "boolean":
            return True
        case "integer" | "number":
            return schema.get("minimum", 0) + (1 if schema.get("exclusiveMinimum") else 0)
        case "string":
            return next(text for text in _STRINGS if _fits(schema, text))
        case _:
            return {"b": 1}


def _others(schema: Schema, value: Any) -> list[Any]:
    """Return other values that fit a schema: one for a plain field, several for a list or a map."""
    if "enum" in schema:
        return [next(other for other in schema["enum"] if other != value)]
    if schema.get("x-kubernetes-int-or-string"):
        return [4 if value == 3 else 3]
    match schema.get("type"):
        case "object" if "additionalProperties" in schema:
            key, *_ = value
            new = _sample(schema["additionalProperties"])
            replaced = {("new" if name == key else name): content for name, content in value.items()}
            exchanged = {("new" if name == key else name): new if name == key else value[name] for name in value}
            return [{**value, "new": new}, replaced, exchanged, {**value, key: _other_inside(value[key])}]
        case "object":
            return [{**value, "new": 1}]
        case "array":
            longer, shorter = [*value, _sample(schema["items"])], value[:-1]
            fitting = [
                v for v in (longer, shorter) if schema.get("minItems", 0) <= len(v) <= schema.get("maxItems", 99)
            ]
            inner = (
                []
                if "properties" in schema["items"]
                else [[other, *value[1:]] for other in _others(schema["items"], value[0])]
            )
            return fitting + inner
        case "boolean":
            return [not value]
        case "integer":
            return [next(other for other in (value + 1, value - 1) if _fits(schema, other))]
        case "number":
            return [next(other for other in (value + 0.5, value * 0.5, value * 0.5 + 0.1) if _fits(schema, other))]
        case _:
            return [next(text for text in _STRINGS if text != value and _fits(schema, text))]


def _other_inside(value: Any) -> Any:
    """Return another value of the same type, for a value whose schema is not declared."""
    if isinstance(value, dict):
        key, *_ = value
        return {**value, key: _other_inside(value[key])}
    if isinstance(value, list):
        return [*value, *value]
    return f"{value}2" if isinstance(value, str) else value + 1


def _fits(schema: Schema, value: Any) -> bool:
    """Whether a number or a string keeps the limits of its schema."""
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above = value > low if schema.get("exclusiveMinimum") else value >= low
    below = value < high if schema.get("exclusiveMaximum") else value <= high
    return bool(above and below)
