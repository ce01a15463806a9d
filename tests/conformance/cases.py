"""All cases, and which of them a session of pytest has selected."""

import pytest

from tests.conformance import (
    cases_any,
    cases_end,
    cases_life,
    cases_limits,
    cases_pods,
    cases_restart,
    cases_scheduling,
    cases_tenants,
    cases_tools,
)
from tests.conformance.model import Case, Mapping
from tests.conformance.trial import Outcome
from tests.support.kube import Api, ApiRefusal
from tests.support.need import require

_TOPICS = (
    *(cases_restart, cases_any, cases_life, cases_limits, cases_tools),
    *(cases_end, cases_pods, cases_scheduling, cases_tenants),
)
CASES: tuple[Case, ...] = tuple(case for topic in _TOPICS for case in topic.CASES)


def parameters(cases: tuple[Case, ...]) -> list[object]:
    """Return the parameters of a test for each case."""
    return [pytest.param(case, id=case.name) for case in cases]


def applicable(cases: tuple[Case, ...], mapping: Mapping) -> tuple[Case, ...]:
    """Return the cases that make sense for an operator."""
    return tuple(case for case in cases if case.needs <= mapping.features)


def selected(session: pytest.Session, folder: str) -> list[Case]:
    """Return the cases whose tests below a folder this session runs."""
    mine = [item for item in session.items if item.nodeid.startswith(folder) and hasattr(item, "callspec")]
    return [item.callspec.params["case"] for item in mine if "case" in item.callspec.params]


async def served(cases: list[Case], api: Api) -> list[Case]:
    """Return the cases whose APIs the API server serves: those about native gangs need a newer one."""
    try:
        await api.get("/apis/scheduling.k8s.io/v1beta1")
    except ApiRefusal:
        return [case for case in cases if "native gangs" not in case.needs]
    return cases


def report(case: Case, outcomes: dict[str, Outcome]) -> None:
    """Fail as the case has."""
    require(case.name in outcomes, "Kubernetes with gang scheduling (1.37 or later)")
    outcome = outcomes[case.name]
    print(f"{outcome.seconds:.1f} s")
    if outcome.error is not None:
        raise outcome.error
