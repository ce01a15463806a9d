"""Generator of the CustomResourceDefinition from the pydantic types.

`python -m trainyard.crd` prints it. The chart holds the result, and a unit test fails if the two differ.
"""

from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from trainyard.base import ApiModel, models_in
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

_DROPPED = ("title", "discriminator", "additionalProperties")
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
    properties["status"].pop("default", None)  # the operator's first write creates it
    schema["required"] = ["spec"]
    return schema


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Inline references and rewrite what JSON Schema allows and a structural schema does not."""
    if "description" in node:
        node = {**node, "description": _unwrap(node["description"])}
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    if node.get("x-kubernetes-int-or-string"):
        keep = ("description", "default", "x-kubernetes-int-or-string")
        return {k: node[k] for k in keep if node.get(k) is not None}
    alternatives = node.get("allOf") or [n for n in node.get("anyOf", ()) if n.get("type") != "null"]
    if alternatives:
        node = _merge_alternatives(node, alternatives, definitions)
    result = {k: v for k, v in node.items() if k not in _DROPPED and k != "$defs" and v is not None}
    result = _rename_limits(result)
    if "properties" in result:
        if "default" in result:
            result["default"] = _without_nulls(result["default"])
        result["properties"] = {k: _structural(v, definitions) for k, v in result["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    if "items" in result:
        result["items"] = _structural(result["items"], definitions)
    return result


def _unwrap(text: str) -> str:
    """Return a docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _without_nulls(value: Any) -> Any:
    """Return a default as the API server accepts it: absent fields are left out, not null."""
    return {k: _without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _merge_alternatives(node: Schema, alternatives: list[Schema], definitions: dict[str, Schema]) -> Schema:
    """Merge a union into one schema: `X | None` becomes X, and `int | "auto"` becomes int-or-string.

    Other unions do not occur in the API types.
    """
    rest = {k: v for k, v in node.items() if k not in ("anyOf", "allOf")}
    if len(alternatives) == 1:
        inner = alternatives[0]
        if "$ref" in inner:
            inner = definitions[inner["$ref"].rsplit("/", 1)[-1]]
        return {**inner, **rest}
    types = {a.get("type") for a in alternatives}
    assert types == {"integer", "string"}, f"no structural form for {alternatives}"
    return {**rest, "x-kubernetes-int-or-string": True}


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
        schema["x-kubernetes-validations"] = [{"rule": r.cel, "message": r.message} for r in model.cel_rules]
    for name, field in model.model_fields.items():
        child = schema.get("properties", {}).get(field.alias or name)
        for nested in models_in(field.annotation):
            _attach_rules(child.get("items", child), nested)


def main() -> None:
    """Print the CRD as YAML."""
    print("# Generated by `make generate` from api/trainyard; do not edit.")
    print(yaml.safe_dump(crd(), sort_keys=False, width=115), end="")


if __name__ == "__main__":
    main()
