"""An API server with the CRDs of the Prometheus Operator takes what the chart makes for it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster import Cluster, ClusterError
from tests.cluster.binaries import find_go
from tests.cluster.chart import render_chart
from tests.integration.conftest import install_crd
from tests.integration.test_chart_monitoring import ALL
from tests.support.need import require

MODULE = "github.com/prometheus-operator/prometheus-operator"
CRDS = Path(__file__).parent / "crds"
"""Pins the module whose files the CRDs are."""
KINDS = ("podmonitors", "servicemonitors", "prometheusrules")


def _crds() -> Iterator[Path]:
    """Files of the CRDs; go.sum says what must be in them."""
    command = [find_go(CRDS), "mod", "download", "-json", MODULE]
    done = subprocess.run(command, cwd=CRDS, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"the CRDs of the Prometheus Operator: {done.stdout}{done.stderr}")
    folder = Path(json.loads(done.stdout)["Dir"], "example", "prometheus-operator-crd")
    yield from (folder / f"monitoring.coreos.com_{kind}.yaml" for kind in KINDS)


@pytest.fixture(scope="module")
def monitored(cluster: Cluster) -> Cluster:
    """The shared cluster with those CRDs, and the namespace of the chart's objects."""
    for file in _crds():
        install_crd(cluster, file)
    cluster.run([cluster.kubectl, "create", "namespace", "monitored"])
    return cluster


def apply(cluster: Cluster, *bodies: object) -> str:
    """Have the API server validate objects, including unknown fields; nothing is stored."""
    strict = ["--server-side", "--dry-run=server", "--validate=strict"]
    return cluster.run([cluster.kubectl, "apply", *strict, "-f", "-"], input=yaml.safe_dump_all(bodies)).stdout


SETTINGS = ("monitoring.labels.release=kps", "monitoring.interval=30s", "monitoring.dashboards.folder=Training")


@pytest.mark.parametrize(
    "settings", [ALL, (*ALL, *SETTINGS), (*ALL, "operator.watchNamespaces={default,team}")], ids=len
)
def test_it_takes_all_objects(monitored: Cluster, settings: tuple[str, ...]) -> None:
    mine = [
        body
        for body in yaml.safe_load_all(render_chart("monitored", *settings))
        if body and (body["apiVersion"].startswith("monitoring") or body["kind"] == "ConfigMap")
    ]
    assert len(mine) == 6
    assert apply(monitored, *mine).count("serverside-applied") == 6


def test_it_would_refuse_a_field_that_does_not_exist(monitored: Cluster) -> None:
    rendered = yaml.safe_load_all(render_chart("monitored", *ALL))
    (monitor,) = (body for body in rendered if body and body["kind"] == "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["honourLabels"] = False
    with pytest.raises(ClusterError, match="honourLabels"):
        apply(monitored, monitor)
