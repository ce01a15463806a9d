"""Each alert fires when it should, with the exact text, resolves, and does not fire in similar healthy cases."""

from pathlib import Path

import pytest

from tests.e2e.alerts import DEFECTS, OPERATOR, TABLE
from tests.monitoring import cases_life, cases_operator, cases_run
from tests.monitoring.promtool import ALERTS, RULES, Case, promtool, run_cases

CASES = [*cases_run.CASES, *cases_life.CASES, *cases_operator.CASES]


def test_promtool_accepts_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_alert(alert: str, tmp_path: Path) -> None:
    done = run_cases([case for case in CASES if case.alert == alert], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_cases_that_fire_resolve_and_stay_silent(alert: str) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert any(case.fires for case in cases)
    assert any(case.silent and case.fires for case in cases), "resolves, or is silent before"
    assert any(not case.fires for case in cases), "a healthy case"


def test_every_alert_is_proven_by_a_real_fault() -> None:
    """See tests/e2e/test_alerts.py, on a real node."""
    assert {*OPERATOR, *DEFECTS, *(name for trouble in TABLE for name in trouble.alerts)} == set(ALERTS)


def test_wrong_expectation_fails(tmp_path: Path) -> None:
    """Without this, the other tests would prove nothing."""
    for fires, silent in (({5: "words"}, ()), ({}, (38,))):
        case = Case("wrong", "TrainyardJobStalled", cases_run.STALLED[0].series, fires, silent)
        assert run_cases([case], tmp_path).returncode == 1
