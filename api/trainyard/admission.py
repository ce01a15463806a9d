"""Admission without an API server: the same schema, the same CEL rules, the same messages.

Where there is a cluster, the API server refuses an invalid manifest by the rules of the CRD. `trainyard run` has no
API server, so this module checks the manifest against the same schema and evaluates the same rules.
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

_TOO_DEEP = "the manifest is nested too deeply; remove the superfluous levels"


def load_manifest(text: str, *, memory: bool = True) -> TrainingJob:
    """Parse one TrainingJob from YAML or JSON and check it as the API server and the operator would.

    `memory`: also refuse a job whose estimated memory exceeds that of its devices.

    Raises:
        ManifestError: the manifest is invalid; one message per fault.
    """
    return admit(parse_manifest(text), memory=memory)


def admit(body: dict[str, Any], *, memory: bool = True, old: TrainingJob | None = None) -> TrainingJob:
    """Check one object as the API server and the operator would, and return it parsed, with defaults.

    `memory`: also refuse a job whose estimated memory exceeds that of its devices. `old`: the stored object that
    `body` updates; transition rules (immutable fields) are then evaluated, too.

    Raises:
        ManifestError: the object is invalid; one message per fault.
    """
    try:
        # Strict JSON, as for the API server: "3" is not an integer, and a tuple is a list.
        job = TrainingJob.model_validate_json(json.dumps(body, default=str), strict=True)
    except RecursionError as error:
        raise ManifestError([_TOO_DEEP]) from error
    except ValidationError as error:
        # The JSON is ours: pydantic's parser refuses nothing else in it.
        too_deep = error.errors()[0]["type"] == "json_invalid"
        raise ManifestError([_TOO_DEEP] if too_deep else _schema_messages(error, body)) from error
    variables = {"self": job.to_dict()} | ({} if old is None else {"oldSelf": old.to_dict()})
    problems = _broken_rules(openapi_schema(), variables)
    problems = problems or (spec_problems if memory else layout_problems)(job)
    if problems:
        raise ManifestError(problems)
    return job


def _broken_rules(schema: Schema, variables: dict[str, Any]) -> list[str]:
    """Return the messages of the CEL rules that an object or anything in it breaks.

    `variables`: the object as `self` and, for an update, the stored one as `oldSelf`. A transition rule is evaluated
    only where both exist, as by the API server.
    """
    problems = []
    for rule in schema.get("x-kubernetes-validations", ()):
        applies = "oldSelf" in variables or "oldSelf" not in rule["rule"]
        if applies and not _holds(rule["rule"], variables):
            problems.append(rule["message"])
    value = variables["self"]
    for name, child in schema.get("properties", {}).items():
        inner = {key: at[name] for key, at in variables.items() if isinstance(at, dict) and name in at}
        if "self" in inner:
            problems += _broken_rules(child, inner)
    # Items of lists have no stored counterpart: the lists are atomic.
    for item in value if isinstance(value, list) and "items" in schema else ():
        problems += _broken_rules(schema["items"], {"self": item})
    return problems


@cache
def _program(expression: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def _holds(expression: str, variables: dict[str, Any]) -> bool:
    return bool(_program(expression).evaluate({name: json_to_cel(value) for name, value in variables.items()}))


def _schema_messages(error: ValidationError, body: dict[str, Any]) -> list[str]:
    """Return one message per invalid field. For a union it names every alternative."""
    expected: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    faults = [(_field_path(fault["loc"], body), fault) for fault in error.errors(include_url=False)]
    paths = [path for path, _ in faults]
    for path, fault in faults:
        if fault["type"] == "too_short" and any(other.startswith(f"{path}[") for other in paths):
            continue  # pydantic counts the valid entries only, and the invalid ones have messages of their own
        expected.setdefault(path, []).append(_explain(dict(fault), path))
        given[path] = "" if fault["type"] in ("missing", "extra_forbidden") else f", not {fault['input']!r}"
    return [f"{path}: {' or '.join(words)}{given[path]}" for path, words in expected.items()]


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
