"""Runs all selected cases side by side, once, against one operator; each test then reports how its case ended."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conformance.backends import StatusWriter
from tests.conformance.cases import selected, served
from tests.conformance.model import selected_mapping
from tests.conformance.prepare import install_scheduling_objects
from tests.conformance.trial import Outcome, run_cases
from tests.integration.conftest import chart_operator, control_plane, install_crd
from tests.support.kube import connect

AT_ONCE = 60
"""Cases side by side. Most of their time they wait; with all of them at once each would wait for all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@asynccontextmanager
async def _trainyard(folder: Path) -> AsyncIterator[Path]:
    """A control plane with our operator."""
    with control_plane("conformance") as cluster:
        install_crd(cluster)
        install_scheduling_objects(cluster, folder)
        with chart_operator(cluster, folder) as operator:
            await operator.ready()
            yield cluster.kubeconfig


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
