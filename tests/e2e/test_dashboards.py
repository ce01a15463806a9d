"""Every panel of the dashboards has something to show of a real job on a real node, and alerts arrive."""

import json
import time
from pathlib import Path

import pytest

from tests.e2e.prometheus import Prometheus
from tests.e2e.world import KILL_A_RANK, Body, World, eventually, trainer_job
from trainyard_monitoring.picture import draw
from trainyard_monitoring.queries import PanelQuery, dashboards, panel_queries

pytestmark = pytest.mark.e2e

PICTURE = Path("build/job-overview.png")


def job(name: str) -> Body:
    """Two ranks in one pod, so that an emptyDir holds the checkpoints of both, with all that can be measured."""
    return trainer_job(
        name,
        steps=1_000_000,
        replicas=1,
        workers={"procsPerWorker": 2},
        trainer={
            "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 64, "evalFraction": 0.001},
            "evaluation": {"everySteps": 50},
            "schedule": {"warmupSteps": 1000},  # in a minute, so the rate is seen to change
        },
        env=[{"name": "TRAINYARD_PEAK_FLOPS", "value": "1000000000000"}],
        checkpoint={"volume": {"emptyDir": {}}, "everySteps": 50},
        # A step now and then is a spike, and left out; and one of two ranks is always slower, by however little.
        health={"straggler": {"factor": 1.0001}, "badSteps": {"spikeFactor": 1.5, "limit": 1000}},
        restartPolicy={"backoff": {"initialSeconds": 0}},
    )


def asks_for_alerts(query: PanelQuery) -> bool:
    return "ALERTS{" in query.expression


def test_every_panel_has_data_and_a_failure_is_an_alert(world: World, prometheus: Prometheus) -> None:
    start, name = time.time(), "seen-job"
    world.apply(job(name))
    world.await_step(name, 200)
    world.kubectl("exec", f"{name}-1-0", "--", "python", "-c", KILL_A_RANK)
    world.await_step(name, 400, attempt=2)

    def empty() -> list[PanelQuery]:
        # Nothing is wrong enough for an alert: the queries for those are asked of a job that has failed, see below.
        queries = [q for q in panel_queries(world.namespace, name, rate_interval="10s") if not asks_for_alerts(q)]
        return [query for query in queries if not prometheus.query(query.expression)]

    deadline = time.monotonic() + 90
    while (missing := empty()) and time.monotonic() < deadline:
        time.sleep(1)
    assert missing == []
    _draw(prometheus, world.namespace, name, start)
    world.kubectl("patch", "tj", name, "--type=merge", "-p", json.dumps({"spec": {"suspend": True}}))
    world.await_phase(name, "Suspended")


def _draw(prometheus: Prometheus, namespace: str, name: str, start: float) -> None:
    """What docs/monitoring.md shows."""
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


def test_a_job_that_fails_for_good_is_an_alert_that_arrives(world: World, prometheus: Prometheus) -> None:
    bad = trainer_job("hopeless", steps=10, replicas=1, trainer={"data": {"source": "text", "path": "/nowhere"}})
    world.apply(bad)
    world.await_phase("hopeless", "Failed")
    eventually("the alert at Alertmanager", lambda: "TrainyardJobFailed" in prometheus.alerts("hopeless"), 60)
    asked = [query for query in panel_queries(world.namespace, "hopeless") if asks_for_alerts(query)]
    assert asked
    # Prometheus tells Alertmanager before it stores what it has found.
    eventually("the alert in the panels", lambda: all(prometheus.query(query.expression) for query in asked), 10)
    world.kubectl("delete", "tj", "hopeless")
    eventually("the alert resolved", lambda: "TrainyardJobFailed" not in prometheus.alerts("hopeless"), 120)
