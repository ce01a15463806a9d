"""Admission without an API server: the same schema, the same CEL rules, the same messages.

Where there is a cluster, the API server refuses a bad manifest with the rules of the CRD. `trainyard run` has no
API server, so this module judges the manifest by the very CRD that would have been installed.
"""

import difflib
import json
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from pydantic import ValidationError

from trainyard.crd import Schema, openapi_schema
from trainyard.manifest import ManifestError, parse_manifest
from trainyard.resolve import layout_problems, spec_problems
from trainyard.resource.job import TrainingJob


def load_manifest(text: str, *, memory: bool = True) -> TrainingJob:
    """Parse one TrainingJob from YAML or JSON and check it as admission would; `memory`: also whether it fits.

    Raises:
        ManifestError: with one message for each fault, naming the field, the rule and the fix.
    """
    return admit(parse_manifest(text), memory=memory)


def admit(body: dict[str, Any], *, memory: bool = True) -> TrainingJob:
    """Check one object as the API server would, and return it parsed, with defaults.

    Raises:
        ManifestError: with one message for each fault.
    """
    try:
        # Strict JSON, as the API server has it: "3" is no number, and a list is a list.
        job = TrainingJob.model_validate_json(json.dumps(body, default=str), strict=True)
    except ValidationError as error:
        raise ManifestError(_schema_messages(error, body)) from error
    value = job.to_dict()
    problems = list(_broken_rules(openapi_schema(), value)) or (spec_problems if memory else layout_problems)(job)
    if problems:
        raise ManifestError(problems)
    return job


def _broken_rules(schema: Schema, value: Any) -> list[str]:
    """Messages of the CEL rules that `value`, or anything in it, breaks."""
    problems = []
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            problems.append(rule["message"])
    for name, child in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            problems += _broken_rules(child, value[name])
    for item in value if isinstance(value, list) and "items" in schema else ():
        problems += _broken_rules(schema["items"], item)
    return problems


@cache
def _program(expression: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def _holds(expression: str, value: Any) -> bool:
    return bool(_program(expression).evaluate({"self": json_to_cel(value)}))


def _schema_messages(error: ValidationError, body: dict[str, Any]) -> list[str]:
    """One message per faulty field; a union names all that it would have taken."""
    wanted: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    faults = [(_field_path(fault["loc"], body), fault) for fault in error.errors(include_url=False)]
    paths = [path for path, _ in faults]
    for path, fault in faults:
        if fault["type"] == "too_short" and any(other.startswith(f"{path}[") for other in paths):
            continue  # pydantic counts the good entries only: the faulty ones are told already
        wanted.setdefault(path, []).append(_explain(dict(fault), path))
        given[path] = "" if fault["type"] in ("missing", "extra_forbidden") else f", not {fault['input']!r}"
    return [f"{path}: {' or '.join(words)}{given[path]}" for path, words in wanted.items()]


def _field_path(location: tuple[int | str, ...], body: Any) -> str:
    """Dotted path of a fault. pydantic appends the tried type of a union: what is no field is left out."""
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
    """What the field must be, as a phrase; pydantic's own words where no better ones are known."""
    if fault["type"] == "extra_forbidden":
        return "unknown field" + _suggestion(path)
    phrase = _PHRASES.get(fault["type"], fault["msg"])
    return str(phrase).format(**fault.get("ctx", {}))


def _suggestion(path: str) -> str:
    """`; did you mean X?` for a misspelt field, else the fields that are known there."""
    *parents, wrong = path.split(".")
    node: Schema = openapi_schema()
    for name in parents:
        node = node.get("properties", {}).get(name.split("[")[0], {})
        node = node.get("items", node)
    known = list(node.get("properties", {}))
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else "; remove it"
