"""One real node for all end-to-end tests: cluster, images, chart, Prometheus; a namespace for each test."""

import itertools
import json
import os
from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, ClusterError, Profile, build_images, down, up
from tests.e2e.namespace import Namespace, OperatorPod, print_evidence
from tests.e2e.node_faults import NodeFaults
from tests.e2e.prometheus import Prometheus, run_prometheus
from tests.support.need import require

SYSTEM = "trainyard-system"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a cluster with a node, and remove it at the end; TRAINYARD_KEEP_CLUSTER keeps it for the next run."""
    keep = bool(os.environ.get("TRAINYARD_KEEP_CLUSTER"))
    if not keep:
        down(Profile.NODE)  # a run that was killed has left its own, with its jobs
    try:
        found = up(Profile.NODE)
    except ClusterError as error:
        require(False, str(error))
        raise
    yield found
    if not keep:
        down(Profile.NODE)


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, str]:
    """Build the images of the Dockerfile on the node; return the reference of each target."""
    return build_images(cluster)


@pytest.fixture(scope="session")
def trainer_image(images: dict[str, str]) -> str:
    """Return the reference of the trainer image."""
    return images["trainer"]


@pytest.fixture(scope="session")
def operator_pod(cluster: Cluster, images: dict[str, str]) -> OperatorPod:
    """Install the chart as a user would, with the images of this checkout."""
    values = []
    for name, target in (("operator", "operator"), ("trainer", "trainer")):
        repository, tag = images[target].rsplit(":", 1)
        values += ["--set", f"{name}.image.repository={repository}", "--set", f"{name}.image.tag={tag}"]
    values += ["--set", "operator.progressInterval=1"]
    arguments = ["upgrade", "--install", "trainyard", "charts/trainyard", "-n", SYSTEM, "--create-namespace"]
    installed = cluster.run([cluster.helm, "status", "trainyard", "-n", SYSTEM], check=False).returncode == 0
    cluster.run([cluster.helm, *arguments, *values, "--wait", "--timeout", "120s"], timeout=150)
    operator = OperatorPod(Namespace(cluster, SYSTEM))
    # In a cluster that was kept, the image may be another one under the same name, which no Deployment notices.
    if installed:
        operator.replace()
    return operator


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run a real Prometheus that scrapes the pods."""
    with run_prometheus(cluster, tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """Create a namespace for one test, under the restricted security profile."""
    yield from _namespace(cluster, operator_pod, request, "restricted")


@pytest.fixture(scope="module")
def open_namespace(cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """Create a namespace for one module, whose pods may mount folders of the node."""
    yield from _namespace(cluster, operator_pod, request, "privileged")


@pytest.fixture(scope="session")
def node_faults(cluster: Cluster) -> NodeFaults:
    """Return the faults that can be injected on the node."""
    return NodeFaults.on(cluster)


def _namespace(
    cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest, profile: str
) -> Iterator[Namespace]:
    namespace = Namespace(cluster, f"e2e-{next(_numbers)}")
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace.name, "labels": {"pod-security.kubernetes.io/enforce": profile}},
    }
    cluster.run([cluster.kubectl, "delete", "namespace", namespace.name, "--ignore-not-found"], timeout=120)
    cluster.run([cluster.kubectl, "apply", "-f", "-"], input=json.dumps(body))
    failures = request.session.testsfailed
    yield namespace
    if request.session.testsfailed > failures:
        print_evidence(namespace, operator_pod)
    # The next test may need the processors that pods of this one have requested.
    namespace.kubectl("delete", "tj", "--all", "--cascade=foreground", "--timeout=90s", timeout=100)
    cluster.run([cluster.kubectl, "delete", "namespace", namespace.name, "--wait=false"])
