"""Model families and optimizers are plug-ins: one from outside of the repository works, and nothing knows families."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.trainer.layouts import TOLERANCE
from tests.trainer.pods import ROOT, environment
from trainyard import models, optimizers
from trainyard.models import FAMILIES
from trainyard_trainer.models import FAMILIES as IMPLEMENTATIONS

SHIPPED = ("api/trainyard", "operator/trainyard_operator", "trainer/trainyard_trainer", "cli/trainyard_cli")
REGISTRIES = ("trainyard.models", "trainyard_trainer.models")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.trainer.extension"]
    env = environment()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("layout", ["fsdp", "tensor"])
def test_a_family_from_outside_trains_the_same_on_every_layout(result: dict[str, Any], layout: str) -> None:
    alone, reports = result["reports"]["alone"], result["reports"][layout]
    assert len(alone) == 6
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.05
    for key in ("loss", "gradNorm"):
        assert [r[key] for r in reports] == pytest.approx([r[key] for r in alone], rel=TOLERANCE)


def test_an_optimizer_from_outside_trains(result: dict[str, Any]) -> None:
    first, second = result["reports"]["lion"]
    assert second["loss"] < first["loss"]


def test_the_crd_names_what_is_registered(result: dict[str, Any]) -> None:
    assert result["names"]["model"] == [*FAMILIES, "recall"]
    assert result["names"]["optimizer"][-1] == "lion"
    assert result["refused"] == (
        "spec.trainer.model.width: is for recall only; remove it, or set spec.trainer.model.name: recall"
    )


def test_registering_too_late_is_an_error() -> None:
    """The types of the resource are made when they are imported, as they were here."""
    with pytest.raises(RuntimeError, match="model family llama: register it before"):
        models.register(FAMILIES["llama"])
    with pytest.raises(RuntimeError, match="optimizer adamw: register it before"):
        optimizers.register("adamw", optimizers.OPTIMIZERS["adamw"])


def test_every_family_has_an_implementation() -> None:
    assert list(IMPLEMENTATIONS) == list(FAMILIES)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Everything that is shipped, except the registries and the folders of the families."""
    for package in SHIPPED:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if "/models/" not in name:
                yield name, ast.parse(path.read_text())


def test_no_family_is_imported_outside_of_the_registries() -> None:
    """So none of their classes can be asked for with isinstance."""
    families = tuple(f"{registry}.{name}" for registry in REGISTRIES for name in ("decoder", *FAMILIES))
    found = [
        (name, node.module)
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(families)
    ]
    assert found == []


def test_no_name_of_a_family_is_compared_with() -> None:
    found = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare | ast.MatchValue | ast.Dict):
                constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                found += [(name, node.lineno, value) for value in constants if value in FAMILIES]
            # Also not in CEL expressions, where names stand in single quotes.
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [(name, node.lineno, family) for family in FAMILIES if f"'{family}'" in node.value]
    assert found == []
