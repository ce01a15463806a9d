"""Messages about fields that do not fit the types: field, rule, fix."""

import difflib
from typing import Any

from pydantic import ValidationError

from trainyard.crd import Schema, openapi_schema
from trainyard.resource import quantity

_MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""


def schema_messages(error: ValidationError, body: dict[str, Any]) -> list[str]:
    """Return one message per invalid field. For a union it names every alternative."""
    expected: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    faults = [(_field_path(fault["loc"], body), fault) for fault in error.errors(include_url=False)]
    paths = [path for path, _ in faults]
    for path, fault in faults:
        if fault["type"] == "too_short" and any(other.startswith(f"{path}[") for other in paths):
            continue  # pydantic counts the valid entries only, and the invalid ones have messages of their own
        expected.setdefault(path, []).append(_explain(dict(fault), path))
        given[path] = "" if fault["type"] in ("missing", "extra_forbidden") else f", not {_shown(fault['input'])}"
    return [f"{path}: {' or '.join(words)}{given[path]}" for path, words in expected.items()]


def _shown(value: Any) -> str:
    """Return a value as a message shows it: its start, if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + " ..."


def _field_path(location: tuple[int | str, ...], body: Any) -> str:
    """Return the dotted path of a fault, without the names of union members that pydantic appends."""
    path = ""
    value = body
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict):
            path += f".{part}"
            value = value.get(part)
    return path.lstrip(".")


_PHRASES = {
    "missing": "is required; add it",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "tuple_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}


def _explain(fault: dict[str, Any], path: str) -> str:
    """Return what a field must be, as a phrase; pydantic's own message where `_PHRASES` has none."""
    if fault["type"] == "extra_forbidden":
        return "unknown field" + _suggestion(path)
    if fault.get("ctx", {}).get("pattern") == quantity.PATTERN:
        return "must be a quantity such as 500m, 2 or 64Gi"
    phrase = _PHRASES.get(fault["type"], fault["msg"])
    return str(phrase).format(**fault.get("ctx", {}))


def _suggestion(path: str) -> str:
    """Return "; did you mean X?" for a misspelt field, else the fields that exist at that place."""
    *parents, wrong = path.split(".")
    node: Schema = openapi_schema()
    for name in parents:
        node = node.get("properties", {}).get(name.split("[")[0], {})
        node = node.get("items", node)
    fields = list(node.get("properties", {}))
    close = difflib.get_close_matches(wrong, fields, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(fields)}" if fields else "; remove it"
