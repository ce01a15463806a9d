"""The chart's operator, and manifests/install.yaml: the same as plain manifests, for those who do not use Helm."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.cluster import Cluster, ClusterError
from tests.cluster.chart import IMAGES, render_chart
from tests.cluster.paths import REPOSITORY

INSTALL = REPOSITORY / "manifests" / "install.yaml"


def test_install_yaml_is_what_the_chart_renders() -> None:
    assert INSTALL.read_text("utf-8") == render_chart("trainyard-system"), "run `make generate`"


def test_the_api_server_takes_install_yaml(cluster: Cluster) -> None:
    applied = cluster.run([cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", INSTALL]).stdout
    assert "deployment.apps/trainyard serverside-applied" in applied
    assert "customresourcedefinition.apiextensions.k8s.io/trainingjobs.trainyard.dev serverside-applied" in applied


def objects(*settings: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    found = [body for body in yaml.safe_load_all(render_chart("system", *settings)) if body]
    return {(body["kind"], body["metadata"]["name"]): body for body in found}


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_an_installation_without_an_image_is_refused_with_the_value_to_set(name: str) -> None:
    images = [image for image in IMAGES if not image.startswith(name)]
    with pytest.raises(ClusterError, match=f"{name}.image.repository is required: build the image, push it"):
        render_chart("system", images=images)


def test_the_images_are_those_of_the_values() -> None:
    settings = ("operator.image.repository=registry/operator", "operator.image.tag=v7")
    [container] = objects(*settings)["Deployment", "trainyard"]["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == "registry/operator:v7"
    assert env["TRAINYARD_TRAINER_IMAGE"] == "trainyard-trainer.invalid/set-this-image:0.1.0"


def test_no_default_image_can_be_pulled() -> None:
    """A registry must not decide what an installation without values runs."""
    text = INSTALL.read_text("utf-8")
    images = re.findall(r"(?:image|value): \"?([\w./-]+:\d[\w.]*)\"?$", text, re.MULTILINE)
    assert len(images) == 2
    assert all(image.split("/")[0].endswith(".invalid") for image in images)


def test_the_operator_knows_its_lease_and_its_name() -> None:
    [container] = objects()["Deployment", "trainyard"]["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["TRAINYARD_LEASE"]["value"] == "system/trainyard"
    assert env["POD_ID"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_a_second_operator_is_kept_on_another_node_and_from_being_drained_with_the_first() -> None:
    one, two = objects(), objects("operator.replicas=2")
    assert two.keys() - one.keys() == {("PodDisruptionBudget", "trainyard")}
    pod = two["Deployment", "trainyard"]["spec"]["template"]
    [spread] = pod["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    for selector in (spread["labelSelector"], two["PodDisruptionBudget", "trainyard"]["spec"]["selector"]):
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert "topologySpreadConstraints" not in one["Deployment", "trainyard"]["spec"]["template"]["spec"]


def test_the_api_server_takes_two_operators(cluster: Cluster) -> None:
    options = ("--server-side", "--dry-run=server", "--force-conflicts")
    body = objects("operator.replicas=2")
    for key in (("Deployment", "trainyard"), ("PodDisruptionBudget", "trainyard")):
        placed = {**body[key], "metadata": {**body[key]["metadata"], "namespace": "default"}}
        cluster.run([cluster.kubectl, "apply", *options, "-f", "-"], input=yaml.safe_dump(placed))


@pytest.mark.parametrize("replicas", ["0", "two", "1.5"])
def test_a_number_of_operators_that_makes_no_sense_is_refused(replicas: str) -> None:
    with pytest.raises(ClusterError, match="replicas"):
        render_chart("system", f"operator.replicas={replicas}")
