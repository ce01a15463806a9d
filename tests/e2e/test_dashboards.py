"""Every panel of the dashboards has data of a real job on a real node, and alerts arrive."""

import json
import time
from pathlib import Path

import pytest

from tests.e2e.namespace import KILL_A_RANK, Body, Namespace, eventually, trainer_job
from tests.e2e.prometheus import Prometheus
from trainyard_monitoring.picture import draw
from trainyard_monitoring.queries import PanelQuery, dashboards, panel_queries

pytestmark = pytest.mark.e2e

PICTURE = Path("build/job-overview.png")


def job(name: str) -> Body:
    """Return a job with every metric: two ranks in one pod, so that an emptyDir holds the checkpoints of both."""
    return trainer_job(
        name,
        steps=1_000_000,
        replicas=1,
        workers={"procsPerWorker": 2},
        trainer={
            "model": {"name": "moe", "preset": "nano", "layers": 2},  # the load of experts has a panel
            "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 64, "evalFraction": 0.001},
            "evaluation": {"everySteps": 50},
            "schedule": {"warmupSteps": 1000},  # in a minute, so the rate is seen to change
        },
        env=[{"name": "TRAINYARD_PEAK_FLOPS", "value": "1000000000000"}],
        checkpoint={"volume": {"emptyDir": {}}, "everySteps": 50},
        # Some steps are spikes, and skipped; and one of two ranks is always a little slower.
        health={"straggler": {"factor": 1.0001}, "badSteps": {"spikeFactor": 1.5, "limit": 1000}},
        restartPolicy={"backoff": {"initialSeconds": 0}},
    )


def asks_for_alerts(query: PanelQuery) -> bool:
    return "ALERTS{" in query.expression


def asks_for_privacy(query: PanelQuery) -> bool:
    """Whether a query is about private runs, which a job with experts cannot be; test_samples has one."""
    return "trainyard_privacy_" in query.expression


def test_every_panel_has_data_and_a_failure_is_an_alert(namespace: Namespace, prometheus: Prometheus) -> None:
    start, name = time.time(), "seen-job"
    namespace.apply(job(name))
    namespace.await_step(name, 100)
    namespace.kubectl("exec", f"{name}-1-0", "--", "python", "-c", KILL_A_RANK)
    namespace.await_step(name, 250, attempt=2)

    def empty() -> list[PanelQuery]:
        # A healthy job has no alert: the test of a failed job below asks the queries for alerts.
        queries = panel_queries(namespace.name, name, rate_interval="10s")
        expected = [q for q in queries if not asks_for_alerts(q) and not asks_for_privacy(q)]
        return [query for query in expected if not prometheus.query(query.expression)]

    deadline = time.monotonic() + 90
    while (missing := empty()) and time.monotonic() < deadline:
        time.sleep(1)
    assert missing == []
    _draw(prometheus, namespace.name, name, start)
    namespace.kubectl("patch", "tj", name, "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
    namespace.await_phase(name, "Suspended")


def _draw(prometheus: Prometheus, namespace: str, name: str, start: float) -> None:
    """Draw the picture that docs/monitoring.md shows."""
    end = time.time()
    values = {"$__rate_interval": "10s", "$namespace": namespace, "$job": name}
    board = json.loads(_filled(json.dumps(dashboards()["trainyard-job.json"]), values))
    PICTURE.parent.mkdir(exist_ok=True)
    draw(board, lambda expression: prometheus.query_range(expression, start, end), PICTURE, start=start)
    assert PICTURE.stat().st_size > 50_000


def _filled(text: str, values: dict[str, str]) -> str:
    for variable, value in values.items():
        text = text.replace(variable, value)
    return text


def test_a_job_that_fails_for_good_is_an_alert_that_arrives(namespace: Namespace, prometheus: Prometheus) -> None:
    bad = trainer_job("hopeless", steps=10, replicas=1, trainer={"data": {"source": "text", "path": "/nowhere"}})
    namespace.apply(bad)
    namespace.await_phase("hopeless", "Failed")
    eventually("the alert at Alertmanager", lambda: "TrainyardJobFailed" in prometheus.alerts("hopeless"), 60)
    asked = [query for query in panel_queries(namespace.name, "hopeless") if asks_for_alerts(query)]
    assert asked
    # Prometheus notifies Alertmanager before it stores the result.
    eventually("the alert in the panels", lambda: all(prometheus.query(query.expression) for query in asked), 10)
    namespace.kubectl("delete", "tj", "hopeless")
    eventually("the alert resolved", lambda: "TrainyardJobFailed" not in prometheus.alerts("hopeless"), 120)
