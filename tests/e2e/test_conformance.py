"""The conformance cases whose pods a real kubelet runs: the table of tests/conformance, on the node of these tests."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.cluster import Cluster
from tests.conformance.backends import RealNode
from tests.conformance.cases import CASES, parameters, report, selected
from tests.conformance.model import Case
from tests.conformance.trainyard import TrainyardMapping
from tests.conformance.trial import Outcome, run_cases
from tests.e2e.namespace import OperatorPod
from tests.support.kube import Api, eventually

pytestmark = pytest.mark.e2e

AT_ONCE = 8
"""Cases side by side, with two pods each: the node has few processors."""
ON_NODE = tuple(case for case in CASES if case.node)


@contextmanager
def _proxy(cluster: Cluster, socket: Path) -> Iterator[None]:
    """Serve the API, whose server may be in a network of its own, at a socket of the file system."""
    command = [*cluster.command_prefix, str(cluster.kubectl), "proxy", f"--unix-socket={socket}"]
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.DEVNULL) as proxy:
        try:
            yield
        finally:
            proxy.terminate()


@asynccontextmanager
async def _connected(socket: Path) -> AsyncIterator[Api]:
    """Requests at such a socket, once it is there."""
    connector = aiohttp.UnixConnector(str(socket))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        api = Api(session)
        await eventually(lambda: api.get("/version"))
        yield api


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    operator_pod: OperatorPod,
    trainer_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Outcome]:
    """How each selected case ended, by its name."""
    cases = selected(request.session, "tests/e2e/")
    socket = tmp_path_factory.mktemp("proxy") / "api"

    async def kubectl(*arguments: str) -> str:
        done = await asyncio.to_thread(cluster.run, [cluster.kubectl, *arguments])
        return done.stdout

    async def run() -> dict[str, Outcome]:
        async with _connected(socket) as api:
            node = RealNode(trainer_image, kubectl)
            return await run_cases(cases, api, TrainyardMapping(), node, at_once=AT_ONCE)

    with _proxy(cluster, socket):
        return asyncio.run(run())


@pytest.mark.parametrize("case", parameters(ON_NODE))
def test_conformance(case: Case, outcomes: dict[str, Outcome]) -> None:
    report(case, outcomes)
