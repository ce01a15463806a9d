"""The conformance suite: black box, by the Kubernetes API alone."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.cases import CASES, applicable, parameters, report
from tests.conformance.model import Case, selected_mapping
from tests.conformance.trial import Outcome

MINE = applicable(CASES, selected_mapping())
_SUPPORT = ("", ".background", ".kube", ".kubelet", ".need", ".operator", ".scheduler_crds")
HELPERS = {f"tests.support{name}" for name in _SUPPORT}
"""Modules for tests that the suite uses, besides its own: clusters, requests and statuses, none of the operator."""


@pytest.mark.parametrize("case", parameters(MINE))
def test_conformance(case: Case, outcomes: dict[str, Outcome]) -> None:
    report(case, outcomes)


def test_the_suite_imports_nothing_of_what_it_tests() -> None:
    imported = set()
    for file in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    assert {name for name in imported if name.startswith("trainyard")} == set()
    support = {name for name in imported if name.startswith("tests.support")}
    assert support <= HELPERS, support - HELPERS


def test_each_case_has_a_name_of_its_own_that_states_a_claim() -> None:
    names = Counter(case.name for case in CASES)
    assert [name for name, times in names.items() if times > 1] == []
    assert [name for name in names if not name.startswith("given ") or ", then " not in name] == []
