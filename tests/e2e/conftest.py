"""One real node for all end-to-end tests: cluster, images, chart, Prometheus; a namespace for each test."""

import itertools
import json
import os
from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, ClusterError, Profile, build_images, down, up
from tests.e2e.node import Hands
from tests.e2e.prometheus import Prometheus, run_prometheus
from tests.e2e.world import OperatorPod, World, print_evidence
from tests.support.need import require

SYSTEM = "trainyard-system"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with a node; it goes at the end unless TRAINYARD_KEEP_CLUSTER is set."""
    try:
        found = up(Profile.NODE)
    except ClusterError as error:
        require(False, str(error))
        raise
    yield found
    if not os.environ.get("TRAINYARD_KEEP_CLUSTER"):
        down(Profile.NODE)


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> dict[str, str]:
    """The images of the Dockerfile, on the node: target to reference."""
    return build_images(cluster)


@pytest.fixture(scope="session")
def trainer_image(images: dict[str, str]) -> str:
    """Reference of the trainer image."""
    return images["trainer"]


@pytest.fixture(scope="session")
def operator_pod(cluster: Cluster, images: dict[str, str]) -> OperatorPod:
    """The chart, installed as a user would, with the images of this checkout."""
    values = []
    for name, target in (("operator", "operator"), ("trainer", "trainer")):
        repository, tag = images[target].rsplit(":", 1)
        values += ["--set", f"{name}.image.repository={repository}", "--set", f"{name}.image.tag={tag}"]
    values += ["--set", "operator.progressInterval=1"]
    arguments = ["upgrade", "--install", "trainyard", "charts/trainyard", "-n", SYSTEM, "--create-namespace"]
    cluster.run([cluster.helm, *arguments, *values, "--wait", "--timeout", "120s"], timeout=150)
    return OperatorPod(World(cluster, SYSTEM))


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes the pods."""
    with run_prometheus(cluster, tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.fixture
def world(cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace of the test's own, under the restricted security profile. What went wrong is printed."""
    yield from _world(cluster, operator_pod, request, "restricted")


@pytest.fixture(scope="module")
def open_world(cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace of the module's own, whose pods may mount folders of the node."""
    yield from _world(cluster, operator_pod, request, "privileged")


@pytest.fixture(scope="session")
def hands(cluster: Cluster) -> Hands:
    """What can be done to the node."""
    return Hands.on(cluster)


def _world(
    cluster: Cluster, operator_pod: OperatorPod, request: pytest.FixtureRequest, profile: str
) -> Iterator[World]:
    world = World(cluster, f"e2e-{next(_numbers)}")
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": world.namespace, "labels": {"pod-security.kubernetes.io/enforce": profile}},
    }
    cluster.run([cluster.kubectl, "delete", "namespace", world.namespace, "--ignore-not-found"], timeout=120)
    cluster.run([cluster.kubectl, "apply", "-f", "-"], input=json.dumps(namespace))
    failures = request.session.testsfailed
    yield world
    if request.session.testsfailed > failures:
        print_evidence(world, operator_pod)
    cluster.run([cluster.kubectl, "delete", "namespace", world.namespace, "--wait=false"])
