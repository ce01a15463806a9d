"""A real etcd and kube-apiserver. Nothing else runs there: the tests play the kubelet and all controllers.

There are two clusters: in the shared one an operator runs all the time; in the other one each test has its own way
with operator and API server.
"""

import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cluster import Cluster, ClusterError, Profile, down, up
from tests.cluster.chart import render_chart
from tests.support.command import Command, Nursery, kubeconfig_for
from tests.support.kube import Api, Namespace, connect, eventually
from tests.support.need import require
from tests.support.operator import OperatorProcess

CRD = Path(__file__).parents[2] / "charts" / "trainyard" / "files" / "crd.yaml"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@contextmanager
def control_plane(name: str) -> Iterator[Cluster]:
    """Yield an empty control plane, and remove it at the end; skip where there can be none."""
    down(Profile.CONTROL_PLANE, name=name)  # a run that was killed has left its own, with its objects
    try:
        cluster = up(Profile.CONTROL_PLANE, name=name)
    except ClusterError as error:
        require(False, f"a control plane: {error}")
        raise
    require(cluster.provider.name != "existing", "a control plane without nodes (TRAINYARD_TEST_KUBECONFIG has some)")
    try:
        yield cluster
    finally:
        down(Profile.CONTROL_PLANE, name=name)


def install_crd(cluster: Cluster, file: Path = CRD) -> None:
    """Apply a CRD, by default that of TrainingJobs, and wait until it is served."""
    cluster.run([cluster.kubectl, "apply", "--server-side", "-f", file])
    name = yaml.safe_load(file.read_text("utf-8"))["metadata"]["name"]
    # Not `kubectl wait`, which gives up on a CRD that has no list of conditions yet.
    deadline = time.monotonic() + 30
    while not _established(cluster, name):
        assert time.monotonic() < deadline, f"the CRD {name} is not established"
        time.sleep(0.05)


def _established(cluster: Cluster, name: str) -> bool:
    crd = json.loads(cluster.run([cluster.kubectl, "get", f"crd/{name}", "-o", "json"]).stdout)
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The shared cluster, with the CRD."""
    with control_plane("integration") as cluster:
        install_crd(cluster)
        yield cluster


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """The other cluster, without the CRD at first."""
    with control_plane("integration-own") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def own_cluster(bare_cluster: Cluster) -> Cluster:
    """The other cluster, with the CRD and without an operator."""
    install_crd(bare_cluster)
    return bare_cluster


_ACCOUNT_KINDS = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
_SYSTEM = "trainyard-system"


def chart_environment(cluster: Cluster, folder: Path, *settings: str, system: str = _SYSTEM) -> dict[str, str]:
    """Return the environment of an operator as the chart runs it: its variables, and its service account's rights."""
    objects = [body for body in yaml.safe_load_all(render_chart(system, *settings)) if body]
    account = yaml.safe_dump_all([body for body in objects if body["kind"] in _ACCOUNT_KINDS])
    apply: list[str | Path] = [cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"]
    cluster.run(apply, input=account)
    token = cluster.run([cluster.kubectl, "-n", system, "create", "token", "trainyard"]).stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text("utf-8"))
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config), "utf-8")
    [deployment] = [body for body in objects if body["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    return {**cluster.environment, **variables, "POD_ID": "trainyard-test", "KUBECONFIG": str(kubeconfig)}


@contextmanager
def chart_operator(cluster: Cluster, folder: Path) -> Iterator[OperatorProcess]:
    """An operator with the rights and the variables that the chart gives it, for the time of the context."""
    operator = OperatorProcess(chart_environment(cluster, folder), folder / "operator.log")
    try:
        yield operator
    finally:
        operator.kill()
    assert [line for line in operator.lines if "exception" in line] == [], "the operator logged a bug"
    assert operator.logged('User "system:serviceaccount:') == [], "the chart gives the operator too few rights"


@pytest.fixture(scope="session")
def shared_operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The operator of the shared cluster."""
    with chart_operator(cluster, tmp_path_factory.mktemp("operator")) as operator:
        yield operator


@pytest.fixture
async def operator(shared_operator: OperatorProcess) -> OperatorProcess:
    """The operator of the shared cluster, once it is ready."""
    await shared_operator.ready()
    return shared_operator


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    """The shared cluster's API."""
    async with connect(cluster.kubeconfig) as api:
        yield api


@pytest.fixture
async def own_api(own_cluster: Cluster) -> AsyncIterator[Api]:
    """The other cluster's API."""
    async with connect(own_cluster.kubeconfig) as api:
        yield api


async def new_namespace(api: Api) -> Namespace:
    """Create a namespace for one test."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": f"test-{next(_numbers)}-"}}
    created = await api.post("/api/v1/namespaces", body)
    return Namespace(api, created["metadata"]["name"])


async def leave(namespace: Namespace) -> None:
    """Delete the jobs, so that no operator reconciles them, and their pods (there is no garbage collector)."""
    await namespace.api.delete(namespace.jobs())
    await namespace.api.delete(namespace.core("pods"), gracePeriodSeconds=0)

    async def check() -> None:
        assert (await namespace.api.get(namespace.jobs()))["items"] == []

    await eventually(check)


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[Namespace]:
    """A namespace of the shared cluster."""
    namespace = await new_namespace(api)
    yield namespace
    await leave(namespace)


@pytest.fixture
async def own_namespace(own_api: Api) -> AsyncIterator[Namespace]:
    """A namespace of the other cluster."""
    namespace = await new_namespace(own_api)
    yield namespace
    await leave(namespace)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where commands are started."""
    nursery = Nursery(tmp_path_factory.mktemp("commands"))
    yield nursery
    nursery.close()


@pytest.fixture
def trainyard(commands: Nursery, cluster: Cluster, namespace: Namespace, tmp_path: Path) -> Command:
    """The command, in a namespace of the shared cluster."""
    return Command(commands, kubeconfig_for(cluster.kubeconfig, namespace.name, tmp_path), namespace.name)
