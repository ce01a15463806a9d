"""The chart's objects for the Prometheus Operator and for Grafana, each by a value of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_job, trainer_spec
from tests.cluster.chart import render_chart
from tests.cluster.model import ClusterError
from tests.cluster.paths import REPOSITORY
from trainyard_monitoring.timing import RUNBOOKS
from trainyard_operator.manifests.pod import build_pod

SWITCHES = ("podMonitor", "serviceMonitor", "prometheusRule", "dashboards")
ALL = tuple(f"monitoring.{switch}.enabled=true" for switch in SWITCHES)
FILES = REPOSITORY / "charts" / "trainyard" / "files"


def objects(*settings: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    found = [body for body in yaml.safe_load_all(render_chart("monitored", *settings)) if body]
    return {(body["kind"], body["metadata"]["name"]): body for body in found}


def test_nothing_of_it_unless_asked_for() -> None:
    kinds = {kind for kind, _ in objects()}
    assert not kinds & {"PodMonitor", "ServiceMonitor", "PrometheusRule", "ConfigMap"}


@pytest.mark.parametrize(
    ("switch", "added"),
    [
        ("podMonitor", {("PodMonitor", "trainyard-workers")}),
        ("serviceMonitor", {("ServiceMonitor", "trainyard-operator")}),
        ("prometheusRule", {("PrometheusRule", "trainyard")}),
        ("dashboards", {("ConfigMap", f"trainyard-dashboard-{name}") for name in ("fleet", "job", "operator")}),
    ],
)
def test_each_switch_adds_its_own(switch: str, added: set[tuple[str, str]]) -> None:
    assert objects(f"monitoring.{switch}.enabled=true").keys() - objects().keys() == added


def test_rules_and_dashboards_are_the_generated_ones() -> None:
    found = objects(*ALL, f"monitoring.runbookUrl={WIKI}")
    assert found["PrometheusRule", "trainyard"]["spec"] == yaml.safe_load(published(FILES / "rules.yaml"))
    for file in (FILES / "dashboards").glob("*.json"):
        body = found["ConfigMap", f"trainyard-dashboard-{file.stem.removeprefix('trainyard-')}"]
        assert json.loads(body["data"][file.name]) == json.loads(published(file))
        assert body["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert "annotations" not in body["metadata"]


WIKI = "https://wiki.example.com/trainyard"


def published(file: Path) -> str:
    """Return a generated file with the URL at which the runbooks are published."""
    return file.read_text("utf-8").replace(f"{RUNBOOKS}/", f"{WIKI}/")


def test_runbooks_are_linked_where_they_are_published() -> None:
    text = render_chart("monitored", *ALL, f"monitoring.runbookUrl={WIKI}/")
    assert RUNBOOKS not in text
    assert f"runbook_url: {WIKI}/TrainyardJobStalled.md" in text
    assert f'"url": "{WIKI}/TrainyardJobStalled.md"' in text


def test_without_a_url_alerts_have_the_path_and_dashboards_no_broken_links() -> None:
    found = objects(*ALL)
    assert found["PrometheusRule", "trainyard"]["spec"] == yaml.safe_load((FILES / "rules.yaml").read_text("utf-8"))
    notes = [
        rule["annotations"]
        for g in found["PrometheusRule", "trainyard"]["spec"]["groups"]
        for rule in g["rules"]
        if "alert" in rule
    ]
    assert all((REPOSITORY / note["runbook_url"]).is_file() for note in notes)
    assert len(notes) >= 14
    for file in (FILES / "dashboards").glob("*.json"):
        body = found["ConfigMap", f"trainyard-dashboard-{file.stem.removeprefix('trainyard-')}"]
        generated = json.loads(file.read_text("utf-8"))
        for panel in generated["panels"]:
            panel.pop("links", None)
        assert json.loads(body["data"][file.name]) == generated


def test_labels_interval_and_folder() -> None:
    settings = ("monitoring.labels.release=kps", "monitoring.interval=30s", "monitoring.dashboards.folder=Training")
    found = objects(*ALL, *settings, "monitoring.dashboards.namespace=grafana")
    for kind, name in (("PodMonitor", "trainyard-workers"), ("ServiceMonitor", "trainyard-operator")):
        body = found[kind, name]
        assert body["metadata"]["labels"]["release"] == "kps"
        (endpoint,) = body["spec"].get("endpoints") or body["spec"]["podMetricsEndpoints"]
        assert endpoint["interval"] == "30s"
    assert found["PrometheusRule", "trainyard"]["metadata"]["labels"]["release"] == "kps"
    board = found["ConfigMap", "trainyard-dashboard-job"]["metadata"]
    assert board["annotations"] == {"grafana_folder": "Training"}
    assert board["namespace"] == "grafana"


def test_the_pod_monitor_selects_what_the_operator_builds() -> None:
    spec = objects(*ALL)["PodMonitor", "trainyard-workers"]["spec"]
    pod = build_pod(make_job(trainer=trainer_spec()), 1, 0, trainer_image="trainer:test")
    labels, (endpoint,) = pod["metadata"]["labels"], spec["podMetricsEndpoints"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert endpoint["port"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
    assert spec["namespaceSelector"] == {"any": True}
    # Prometheus makes this name of the label's.
    source = "__meta_kubernetes_pod_label_" + next(k for k in labels if k.endswith("job-name")).translate(
        str.maketrans("./-", "___")
    )
    path = "__meta_kubernetes_pod_annotation_prometheus_io_path"
    assert [rule["sourceLabels"] for rule in endpoint["relabelings"]] == [[source], [source], [path]]
    assert "prometheus.io/path" in pod["metadata"]["annotations"]


def test_it_looks_where_the_operator_does() -> None:
    spec = objects(*ALL, "operator.watchNamespaces={team,other}")["PodMonitor", "trainyard-workers"]["spec"]
    assert spec["namespaceSelector"] == {"matchNames": ["team", "other"]}


def test_the_service_monitor_selects_the_operators_service() -> None:
    found = objects(*ALL)
    spec, service = found["ServiceMonitor", "trainyard-operator"]["spec"], found["Service", "trainyard-metrics"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert spec["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
    assert spec["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert spec["endpoints"][0]["honorLabels"] is True, "or jobs would have the operator's namespace"


def test_the_plain_annotations_can_be_switched_off() -> None:
    def annotations(*settings: str) -> Mapping[str, str]:
        metadata: Mapping[str, Any] = objects(*settings)["Deployment", "trainyard"]["spec"]["template"]["metadata"]
        found: Mapping[str, str] = metadata.get("annotations", {})
        return found

    assert annotations()["prometheus.io/scrape"] == "true"
    assert annotations("operator.scrapeAnnotations=false") == {}
    assert annotations("operator.scrapeAnnotations=false", "operator.podAnnotations.a=b") == {"a": "b"}


@pytest.mark.parametrize(
    "setting",
    [
        "monitoring.podMonitor.enabled=yes",
        "monitoring.interval=often",
        "monitoring.runbookUrl=docs",
        "monitoring.x=1",
    ],
)
def test_a_wrong_value_is_refused(setting: str) -> None:
    with pytest.raises(ClusterError, match="monitoring"):
        render_chart("monitored", setting)
