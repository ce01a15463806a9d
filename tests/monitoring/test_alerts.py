"""Each alert fires when it should, with exact words, does not in the cases that tempt it, and resolves."""

from pathlib import Path

import pytest

from tests.e2e.alerts import OPERATOR, TABLE
from tests.monitoring import cases_life, cases_operator, cases_run
from tests.monitoring.promtool import ALERTS, RULES, Case, promtool, run_cases

CASES = [*cases_run.CASES, *cases_life.CASES, *cases_operator.CASES]


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_alert(alert: str, tmp_path: Path) -> None:
    done = run_cases([case for case in CASES if case.alert == alert], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_seen_to_fire_and_to_be_silent(alert: str) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert any(case.fires for case in cases)
    assert any(case.silent and case.fires for case in cases), "resolves, or is silent before"
    assert any(not case.fires for case in cases), "a false alarm that does not happen"


def test_every_alert_fires_for_a_real_fault_too() -> None:
    """On a real node: tests/e2e/test_alerts.py."""
    assert {*OPERATOR, *(name for trouble in TABLE for name in trouble.alerts)} == set(ALERTS)


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    """Or all of the above would prove nothing."""
    for fires, silent in (({5: "words"}, ()), ({}, (38,))):
        case = Case("wrong", "TrainyardJobStalled", cases_run.STALLED[0].series, fires, silent)
        assert run_cases([case], tmp_path).returncode == 1
