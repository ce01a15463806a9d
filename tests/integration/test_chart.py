"""manifests/install.yaml: the chart as plain manifests, for those who do not use Helm."""

from tests.cluster import Cluster
from tests.cluster.chart import render_chart
from tests.cluster.paths import REPOSITORY

INSTALL = REPOSITORY / "manifests" / "install.yaml"


def test_install_yaml_is_what_the_chart_renders() -> None:
    assert INSTALL.read_text("utf-8") == render_chart("trainyard-system"), "run `make generate`"


def test_the_api_server_takes_install_yaml(cluster: Cluster) -> None:
    applied = cluster.run([cluster.kubectl, "apply", "--server-side", "--force-conflicts", "-f", INSTALL]).stdout
    assert "deployment.apps/trainyard serverside-applied" in applied
    assert "customresourcedefinition.apiextensions.k8s.io/trainingjobs.trainyard.dev serverside-applied" in applied
