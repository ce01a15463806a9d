"""Each value of the chart reaches the object that it is for."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.cluster.chart import render_chart

Body = Mapping[str, Any]


def rendered(*settings: str) -> dict[tuple[str, str], Body]:
    found = [body for body in yaml.safe_load_all(render_chart("system", *settings)) if body]
    return {(body["kind"], body["metadata"]["name"]): body for body in found}


def pod_spec(*settings: str) -> Body:
    spec: Body = rendered(*settings)["Deployment", "trainyard"]["spec"]["template"]["spec"]
    return spec


def operator(*settings: str) -> Body:
    [container] = pod_spec(*settings)["containers"]
    found: Body = container
    return found


def variables(*settings: str) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in operator(*settings)["env"] if "value" in variable}


def test_probes_ask_the_page_that_is_about_what_the_kubelet_does_with_the_answer() -> None:
    """A restart must not follow from /readyz, which is also false while the API server is away."""
    container = operator()
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_the_operator_runs_without_privileges() -> None:
    assert operator()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod_spec()["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_no_service_of_the_namespace_sets_options_of_the_operator() -> None:
    """A Service named trainyard would set TRAINYARD_PORT, as Kubernetes defines variables for Services."""
    assert pod_spec()["enableServiceLinks"] is False


def test_one_of_two_operators_may_be_drained_at_a_time() -> None:
    assert rendered("operator.replicas=2")["PodDisruptionBudget", "trainyard"]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        (["operator.nodeSelector.pool=system"], "nodeSelector", {"pool": "system"}),
        (["operator.tolerations[0].key=a"], "tolerations", [{"key": "a"}]),
        (["operator.affinity.nodeAffinity.x=y"], "affinity", {"nodeAffinity": {"x": "y"}}),
        (["operator.priorityClassName=system"], "priorityClassName", "system"),
        (["imagePullSecrets[0].name=registry"], "imagePullSecrets", [{"name": "registry"}]),
    ],
)
def test_a_field_of_the_operators_pod_follows_its_value_and_is_absent_without_it(
    settings: list[str], field: str, expected: object
) -> None:
    assert pod_spec(*settings)[field] == expected
    assert field not in pod_spec()


def test_images_follow_from_repository_and_tag() -> None:
    settings = (
        *("operator.image.repository=registry.example/o", "operator.image.tag=v1", "operator.image.pullPolicy=Always"),
        *("trainer.image.repository=registry.example/t", "trainer.image.tag=v2"),
    )
    container = operator(*settings)
    assert (container["image"], container["imagePullPolicy"]) == ("registry.example/o:v1", "Always")
    assert variables(*settings)["TRAINYARD_TRAINER_IMAGE"] == "registry.example/t:v2"


def test_resources_follow_from_their_value() -> None:
    assert operator("operator.resources.limits.memory=1Gi")["resources"]["limits"] == {"memory": "1Gi"}


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("operator.watchNamespaces={team,other}", "TRAINYARD_WATCH_NAMESPACES", "team,other"),
        ("operator.progressInterval=7", "TRAINYARD_PROGRESS_INTERVAL", "7"),
        ("operator.resyncInterval=60", "TRAINYARD_RESYNC_INTERVAL", "60"),
        ("operator.logLevel=debug", "TRAINYARD_LOG_LEVEL", "debug"),
    ],
)
def test_a_setting_of_the_operator_reaches_its_environment(setting: str, name: str, value: str) -> None:
    assert variables(setting)[name] == value
    assert variables()[name] != value


def test_the_crd_is_installed_unless_the_value_says_otherwise_and_stays_at_an_uninstall() -> None:
    key = "CustomResourceDefinition", "trainingjobs.trainyard.dev"
    assert rendered()[key]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert key not in rendered("crd.install=false")
