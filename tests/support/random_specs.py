"""Random specs, derived from the schema of the CRD: mostly valid ones, with values at and beyond their limits."""

import random
from typing import Any

from trainyard.crd import Schema, openapi_schema

_TEXTS = (
    *("a", "auto", "x-y", "", " ", "1", "-1", "1.5", "8", "2k", "1Gi", "64Gi", "1e3", "1e999", "1e-999", "0", "500m"),
    *(
        "99999999999999999999",
        "/data",
        "../..",
        "$(HOME)",
        "a" * 300,
        "\N{SNOWMAN}",
        "\x00",
        "line\nbreak",
        "None",
        "8Ki",
    ),
)
_NUMBERS = (-1, 0, 1, 2, 3, 4, 8, 16, 64, 100, 65_536, 2**31 - 1, 2**31, 2**63 - 1)
_FRACTIONS = (-1.0, 0.0, 0.1, 0.5, 1.0, 1.5, 1e-8, 1e6, 1e300)
_NAMES = ("nvidia.com/gpu", "memory", "cpu", "a", "nodeSelector", "containers", "volumes", "tolerations", "affinity")
_PARTS: tuple[Any, ...] = (
    *(None, True, 3, "text", [], {}, [None], [{}], {"a": "b"}, ["a"]),
    *([{"name": "worker"}], [{"name": "worker", "env": [None]}], [{"image": "y"}], [{"key": 3}]),
    *({"nodeAffinity": None}, {"claimName": "shared"}, [{"name": "data", "emptyDir": {}}]),
    *([{"name": "worker", "volumeMounts": [{"name": "data", "mountPath": "/data"}], "resources": {"limits": None}}],),
)


class RandomSpecs:
    """A source of specs, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._schema: Schema = openapi_schema()["properties"]["spec"]

    def change(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return a spec with some of its fields added, removed or changed at random."""
        for _ in range(self._dice.choice((1, 1, 2, 3))):
            spec = self._changed(spec, self._schema)
        return spec

    def _changed(self, value: Any, schema: Schema) -> Any:
        """Return a value with one difference somewhere inside."""
        dice, properties = self._dice, schema.get("properties")
        if isinstance(value, dict) and properties:
            name = dice.choice(list(properties))
            if name not in value:
                return {**value, name: self._value(properties[name])}
            if dice.random() < 0.1:
                return {other: inner for other, inner in value.items() if other != name}
            return {**value, name: self._changed(value[name], properties[name])}
        if isinstance(value, list) and value and "items" in schema and dice.random() < 0.7:
            return [self._changed(value[0], schema["items"]), *value[1:]]
        return self._value(schema)

    def _value(self, schema: Schema) -> Any:
        """Return a value that fits a schema more often than not."""
        dice = self._dice
        if "enum" in schema and dice.random() < 0.9:
            return dice.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return dice.choice((*_NUMBERS, *_TEXTS))
        match schema.get("type"):
            case "object" if "properties" in schema:
                chosen = [name for name in schema["properties"] if dice.random() < 0.2]
                names = dict.fromkeys((*schema.get("required", ()), *chosen))
                return {name: self._value(schema["properties"][name]) for name in names}
            case "object":
                inner = schema.get("additionalProperties", {})
                return {dice.choice(_NAMES): self._value(inner) for _ in range(dice.randint(0, 2))}
            case "array":
                count = dice.choice((0, 1, 2, schema.get("minItems", 1)))
                return [self._value(schema["items"]) for _ in range(count)]
            case "boolean":
                return dice.random() < 0.5
            case "integer":
                near = [schema[limit] + dice.choice((0, 1, -1)) for limit in ("minimum", "maximum") if limit in schema]
                return dice.choice((*_NUMBERS, *near))
            case "number":
                return dice.choice((*_FRACTIONS, 1, 2))
            case "string":
                return dice.choice(_TEXTS)
            case _:
                return dice.choice(_PARTS)
