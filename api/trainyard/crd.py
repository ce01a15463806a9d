"""Generator of the CustomResourceDefinition from the pydantic types.

`python -m trainyard.crd` prints it. The chart holds the result, and a unit test fails if the two differ.
"""

from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from trainyard.base import PART_OF_POD, ApiModel, Rule, models_in
from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob

Schema = dict[str, Any]

_COLUMNS = (
    ("Phase", "string", ".status.phase", "Summary of the conditions in one word", 0),
    ("Step", "integer", ".status.progress.step", "Completed optimizer steps", 0),
    ("Loss", "number", ".status.progress.loss", "Training loss at the last report", 0),
    ("Tokens/s", "number", ".status.progress.tokensPerSecond", "Throughput of all ranks together", 0),
    ("Workers", "integer", ".status.workers.running", "Number of running workers", 0),
    ("Restarts", "integer", ".status.restarts", "Number of restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation", 0),
    ("Attempt", "integer", ".status.attempt", "Number of the current attempt", 1),
    ("Steps", "integer", ".status.progress.totalSteps", "Total number of optimizer steps", 1),
    ("MFU", "number", ".status.progress.mfu", "Model FLOPs utilization: share of the peak of the devices", 1),
    ("ETA", "number", ".status.progress.etaSeconds", "Seconds until the last step at the current speed", 1),
)

_DROPPED = ("title", "discriminator", "additionalProperties", PART_OF_POD)
"""Keys of JSON Schema that a structural schema must not have. `additionalProperties: false` is replaced by the field
validation of the API server, which refuses unknown fields; `_structural` keeps the schema of a map's values."""


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition as a plain object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{constants.PLURAL}.{constants.GROUP}",
            # Uninstalling the operator must not delete the jobs of its users.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": constants.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": constants.KIND,
                "plural": constants.PLURAL,
                "singular": constants.KIND.lower(),
                "shortNames": ["tj"],
                "categories": ["all"],
            },
            "versions": [_version()],
        },
    }


def _version() -> dict[str, Any]:
    return {
        "name": constants.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": openapi_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.workers.replicas",
                "statusReplicasPath": ".status.workers.running",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": text, "priority": priority}
            for name, kind, path, text, priority in _COLUMNS
        ],
    }


@cache
def openapi_schema() -> Schema:
    """Return the structural schema of a TrainingJob, with its CEL rules. It is built once: do not modify it."""
    root = TrainingJob.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(root, root.get("$defs", {}))
    _attach_rules(schema, TrainingJob)
    properties = schema["properties"]
    properties["metadata"] = {"type": "object"}  # the API server owns its schema
    for owned in ("apiVersion", "kind"):
        properties[owned] = {"type": "string"}
    # Until the operator has written a status, tools must not take the job for reconciled: kstatus compares this number
    # with metadata.generation, which starts at 1.
    properties["status"]["default"] = {"observedGeneration": 0}
    schema["required"] = ["spec"]
    return schema


def _structural(node: Schema, definitions: dict[str, Schema], path: str = "", *, checked: bool = False) -> Schema:
    """Inline references and rewrite what JSON Schema allows and a structural schema does not.

    `checked`: the API server checks undeclared fields below this node, as parts of a pod.

    Raises:
        TypeError: a part of the schema would admit values that nothing checks.
    """
    if "description" in node:
        node = {**node, "description": _unwrap(node["description"])}
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    alternatives = node.get("allOf") or [n for n in node.get("anyOf", ()) if n.get("type") != "null"]
    if len(alternatives) > 1:
        return _int_or_string(node, alternatives, path)
    if alternatives:
        node = _merge_optional(node, alternatives[0], definitions)
    checked = checked or bool(node.get(PART_OF_POD))
    if node.get("x-kubernetes-preserve-unknown-fields") and not checked:
        raise TypeError(f"{path}: nothing checks its fields; declare them, or mark it with PART_OF_POD if it is one")
    result = {k: v for k, v in node.items() if k not in _DROPPED and k != "$defs" and v is not None}
    result = _rename_limits(result)
    if "properties" in result:
        if "default" in result:
            result["default"] = _without_nulls(result["default"])
        result["properties"] = {
            k: _structural(v, definitions, f"{path}.{k}".lstrip("."), checked=checked)
            for k, v in result["properties"].items()
        }
    elif isinstance(node.get("additionalProperties"), dict):
        inner = _structural(node["additionalProperties"], definitions, f"{path}[]", checked=checked)
        result["additionalProperties"] = inner
    if "items" in result:
        result["items"] = _structural(result["items"], definitions, f"{path}[]", checked=checked)
    return result


def _int_or_string(node: Schema, alternatives: list[Schema], path: str) -> Schema:
    """Return the schema of `int | "auto"`, or of an integer or a text with a pattern, with a guard of both.

    Raises:
        TypeError: it is another union, or one of the two has no limits.
    """
    by_type = {a.get("type"): a for a in alternatives}
    number, text = by_type.get("integer", {}), by_type.get("string", {})
    if len(alternatives) != 2 or not {"minimum", "maximum"} <= number.keys() or not {"const", "pattern"} & text.keys():
        raise TypeError(f"{path}: a union must be of an integer with limits, and a constant or a text with a pattern")
    result = {k: node[k] for k in ("description", "default") if node.get(k) is not None}
    result["x-kubernetes-int-or-string"] = True
    low, high = number["minimum"], number["maximum"]
    # Limits of a text apply to texts only, and those of a number to numbers only.
    if "pattern" in text:
        limits: Schema = {k: v for k, v in text.items() if k in ("pattern", "maxLength")}
        return {**result, **limits, "minimum": low, "maximum": high}
    rule = f"type(self) == int ? self >= {low} && self <= {high} : self == '{text['const']}'"
    message = f"{path}: must be {text['const']} or a whole number from {low} to {high}; correct it"
    return {**result, "x-kubernetes-validations": [{"rule": rule, "message": message}]}


def _unwrap(text: str) -> str:
    """Return a docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _without_nulls(value: Any) -> Any:
    """Return a default as the API server accepts it: absent fields are left out, not null."""
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _merge_optional(node: Schema, inner: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of `X | None`, which is X."""
    rest = {k: v for k, v in node.items() if k not in ("anyOf", "allOf")}
    if "$ref" in inner:
        inner = definitions[inner["$ref"].rsplit("/", 1)[-1]]
    return {**inner, **rest}


def _rename_limits(node: Schema) -> Schema:
    """Convert JSON Schema 2020 to OpenAPI 3.0: exclusive limits are flags there, and a constant is an enum of one."""
    for new, old in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if new in node:
            node = {**node, old: node[new], new: True}
    if "const" in node:
        node = {**node, "enum": [node["const"]]}
        del node["const"]
    return node


def _attach_rules(schema: Schema, model: type[BaseModel]) -> None:
    """Add the CEL rules of each type to its object in the schema."""
    if issubclass(model, ApiModel) and model.cel_rules:
        schema["x-kubernetes-validations"] = [_validation(rule) for rule in model.cel_rules]
    for name, field in model.model_fields.items():
        child = schema.get("properties", {}).get(field.alias or name)
        for nested in models_in(field.annotation):
            _attach_rules(child.get("items", child), nested)


def _validation(rule: Rule) -> dict[str, str]:
    by_object = {"messageExpression": rule.message_cel} if rule.message_cel else {}
    return {"rule": rule.cel, "message": rule.message, **by_object}


def main() -> None:
    """Print the CRD as YAML."""
    print("# Generated by `make generate` from api/trainyard; do not edit.")
    print(yaml.safe_dump(crd(), sort_keys=False, width=115), end="")


if __name__ == "__main__":
    main()
