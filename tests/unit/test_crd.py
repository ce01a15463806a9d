"""The CRD: generated, structural, and with a description of every field."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.support.spec_changes import leaves, spec_schema
from tests.support.specs import MUTABLE_FIELDS
from trainyard import crd
from trainyard.crd import Schema, openapi_schema
from trainyard.models import FAMILIES
from trainyard.resource.immutability import mutable_fields
from trainyard.resource.models import Model
from trainyard.resource.spec import TrainingJobSpec

CHART = Path(__file__).parents[2] / "charts" / "trainyard" / "files" / "crd.yaml"


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


NODES = list(nodes(openapi_schema()))


def test_the_chart_contains_the_generated_crd(capsys: pytest.CaptureFixture[str]) -> None:
    crd.main()
    assert CHART.read_text("utf-8") == capsys.readouterr().out, "the CRD is out of date: run `make generate`"


def test_the_generated_yaml_is_the_crd(capsys: pytest.CaptureFixture[str]) -> None:
    crd.main()
    assert yaml.safe_load(capsys.readouterr().out) == crd.crd()


def test_every_field_is_described() -> None:
    owned_by_the_api_server = {".apiVersion", ".kind", ".metadata"}
    fields = {path: node for path, node in NODES if "." in path and not path.endswith(("[]", "{}"))}
    assert len(fields) > 80
    undescribed = {path for path, node in fields.items() if not node.get("description", "").strip()}
    assert undescribed == owned_by_the_api_server


def test_the_schema_is_structural() -> None:
    """The API server refuses other schemas (Kubernetes documentation, Specifying a structural schema)."""
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "title", "const", "discriminator", "nullable"}
    untyped = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}
    for path, node in NODES:
        assert not forbidden & node.keys(), path
        assert "type" in node or node.keys() & untyped, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path


def test_every_field_of_the_spec_is_immutable_unless_it_is_marked() -> None:
    """Each field is compared in the transition rule, itself or an object that contains it, or it is marked."""
    (rule,) = [r for r in openapi_schema()["x-kubernetes-validations"] if "oldSelf" in r["rule"]]
    compared = set(re.findall(r"self\.spec\.([\w.]+) == oldSelf\.spec\.\1\b", rule["rule"]))
    assert tuple(mutable_fields(TrainingJobSpec)) == MUTABLE_FIELDS

    def covered(field: str, by: Collection[str]) -> bool:
        return any(field == other or field.startswith(f"{other}.") for other in by)

    fields = {".".join(part for part in path if isinstance(part, str)) for path in leaves(spec_schema())}
    assert len(fields) > 100
    assert {f for f in fields if covered(f, compared) == covered(f, MUTABLE_FIELDS)} == set()


def test_no_default_contains_null() -> None:
    def holds_null(value: Any) -> bool:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return value is None or any(holds_null(part) for part in inside)

    assert [path for path, node in NODES if "default" in node and holds_null(node["default"])] == []


def test_lists_and_maps_of_the_spec_are_bounded() -> None:
    """The API server refuses a CRD whose rules could cost too much; lists and maps need a limit for that."""
    unbounded = [
        path
        for path, node in NODES
        if path.startswith(".spec")
        and (
            (node.get("type") == "array" and "maxItems" not in node)
            or ("additionalProperties" in node and "maxProperties" not in node)
        )
    ]
    assert unbounded == []


PRESETS = {name: family.presets for name, family in FAMILIES.items()}


def test_the_schema_names_exactly_the_presets() -> None:
    named, _ = get_args(Model.model_fields["preset"].annotation)
    assert {name for presets in PRESETS.values() for name in presets} == set(get_args(named))


def test_the_page_of_models_names_every_preset() -> None:
    page = Path("docs/models.md").read_text()
    assert [name for presets in PRESETS.values() for name in presets if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("model", "name"), [(model, name) for model in PRESETS for name in PRESETS[model]])
def test_each_preset_gives_every_size_and_satisfies_the_rules(model: str, name: str) -> None:
    sizes = PRESETS[model][name]
    own = {"experts", "expertsPerToken"} if model == "moe" else set()
    decoder = {"dim", "layers", "heads", "kvHeads", "ffnDim", "ropeTheta", "normEps", "tiedEmbeddings", "qkNorm"}
    assert set(sizes) - {"headDim", "ropeScaling"} == decoder | own
    assert model == "llama" or (sizes["dim"] % 8 == 0 and sizes["ffnDim"] % 8 == 0)
    assert model == "llama" or sizes["expertsPerToken"] <= sizes["experts"]
    assert sizes["dim"] % (2 * sizes["heads"]) == 0
    assert sizes["heads"] % sizes["kvHeads"] == 0


def test_every_rule_message_names_the_field_and_the_fix() -> None:
    rules = [rule for _, node in NODES for rule in node.get("x-kubernetes-validations", ())]
    assert len(rules) >= 14
    for rule in rules:
        field, _, rest = rule["message"].partition(": ")
        assert field.startswith(("spec", "metadata.name", "status.progress.")), rule
        assert ("; " in rest) or ("must be" in rest), rule
        assert len(rule["message"]) <= 2048, rule
