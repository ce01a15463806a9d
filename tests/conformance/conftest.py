"""Runs all selected cases side by side, once, against one operator; each test then reports how its case ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster import Cluster, ClusterError, Profile, down, up
from tests.conformance.backends import StatusWriter
from tests.conformance.cases import selected, served
from tests.conformance.model import selected_mapping
from tests.conformance.prepare import install_scheduling_objects
from tests.conformance.trial import Outcome, run_cases
from tests.integration.conftest import chart_environment, install_crd
from tests.support.kube import connect
from tests.support.need import require
from tests.support.operator import OperatorProcess

AT_ONCE = 60
"""Cases side by side. Most of their time they wait; with all of them at once each would wait for all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


def _control_plane() -> Cluster:
    try:
        cluster = up(Profile.CONTROL_PLANE, name="conformance")
    except ClusterError as error:
        require(False, f"a control plane: {error}")
        raise
    require(cluster.provider.name != "existing", "a control plane without nodes (TRAINYARD_TEST_KUBECONFIG has some)")
    return cluster


@asynccontextmanager
async def _trainyard(folder: Path) -> AsyncIterator[Path]:
    """A control plane with our operator, with the rights and the variables that the chart gives it."""
    cluster = _control_plane()
    try:
        install_crd(cluster)
        install_scheduling_objects(cluster, folder)
        operator = OperatorProcess(chart_environment(cluster, folder), folder / "log")
        try:
            await operator.ready()
            yield cluster.kubeconfig
        finally:
            operator.kill()
        assert [line for line in operator.lines if "exception" in line] == [], "the operator logged a bug"
        assert operator.logged('User "system:serviceaccount:') == [], "the chart gives the operator too few rights"
    finally:
        down(Profile.CONTROL_PLANE, name="conformance")


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """How each selected case ended, by its name."""
    mapping, cases = selected_mapping(), selected(request.session, "tests/conformance/")
    folder = tmp_path_factory.mktemp("conformance")

    async def run() -> dict[str, Outcome]:
        if mapping.name != "trainyard":
            async with connect(Path(os.environ["KUBECONFIG"])) as api:
                return await run_cases(cases, api, mapping, StatusWriter(), at_once=AT_ONCE)
        async with _trainyard(folder) as kubeconfig, connect(kubeconfig) as api:
            return await run_cases(await served(cases, api), api, mapping, StatusWriter(), at_once=AT_ONCE)

    return asyncio.run(run())
