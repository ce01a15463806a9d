"""The metrics of jobs that the operator exports."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.builders import make_job, make_pod
from tests.support import kubelet
from tests.support.simulation import Simulation
from trainyard_operator.controller.cache import Cache
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.job_metrics import JobCollector
from trainyard_operator.kube.metrics import OperatorMetrics

KEY = ("default", "job")
START = datetime(2030, 1, 1, tzinfo=UTC)


class Page:
    """The page of an operator that knows some jobs."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.now = START
        self.registry = CollectorRegistry()
        self.registry.register(JobCollector(self.cache, lambda: self.now))

    def put(self, **status: Any) -> None:
        self.cache.put_job(make_job(status=status))

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"namespace": "default", "job_name": "job", **labels})


def condition(kind: str, status: bool, second: int) -> dict[str, Any]:
    at = (START + timedelta(seconds=second)).isoformat()
    return {"type": kind, "status": str(status), "reason": "r", "lastTransitionTime": at}


def test_the_series_of_a_job_show_its_state_and_disappear_with_it() -> None:
    page = Page()
    goodput = {"productiveSeconds": 90, "suspendedSeconds": 10, "accountedAt": "2030-01-01T00:00:00Z"}
    failure = {"attempt": 2, "reason": "OOMKilled", "at": "2030-01-01T00:00:00Z"}
    page.put(
        phase="Running",
        conditions=[condition("Running", True, 0)],
        attempt=3,
        workers={"desired": 2},
        restarts=5,
        restartsCounted=2,
        goodput=goodput,
        lastFailure=failure,
    )
    page.cache.put_pod(make_pod(make_job(), 0, status=kubelet.evicted()))
    page.cache.put_pod(make_pod(make_job(), 1))

    assert page.value("trainyard_job_condition", condition="Running") == 1
    assert page.value("trainyard_job_condition", condition="Failed") == 0
    assert page.value("trainyard_job_pods", state="Failed") == 1
    assert page.value("trainyard_job_pods", state="Pending") == 1
    assert page.value("trainyard_job_workers_desired") == 2
    assert page.value("trainyard_job_attempt") == 3
    assert page.value("trainyard_job_restarts_total", counted="true") == 2
    assert page.value("trainyard_job_restarts_total", counted="false") == 3
    assert page.value("trainyard_job_last_failure_timestamp_seconds", reason="OOMKilled") == START.timestamp()
    assert page.value("trainyard_job_goodput_seconds_total", part="productive") == 90
    assert page.value("trainyard_job_goodput_seconds_total", part="recovery") == 0
    assert 'trainyard_operator_jobs{phase="Running"} 1.0' in page.text
    assert 'trainyard_operator_jobs{phase="Failed"} 0.0' in page.text

    page.cache.remove_job(KEY, "uid-1")
    assert 'job_name="job"' not in page.text
    assert 'trainyard_operator_jobs{phase="Running"} 0.0' in page.text


@pytest.mark.parametrize(("kind", "hours"), [("Succeeded", 2), ("Failed", 25)])
def test_a_job_that_finished_long_ago_has_no_series(kind: str, hours: int) -> None:
    page = Page()
    page.put(phase=kind, conditions=[condition(kind, True, 0)], completionTime=START.isoformat())
    for seconds, shown in ((-1, True), (1, False)):
        page.now = START + timedelta(hours=hours, seconds=seconds)
        assert ('job_name="job"' in page.text) is shown
        assert f'trainyard_operator_jobs{{phase="{kind}"}} 1.0' in page.text


@pytest.mark.parametrize(
    ("conditions", "pending"),
    [
        ([], 0),
        ([condition("Created", True, 0)], 100),
        ([condition("Created", True, 0), condition("Running", True, 20)], 0),
        ([condition("Created", True, 0), condition("Running", False, 70)], 30),
        ([condition("Created", True, 0), condition("Running", False, 70), condition("Suspended", False, 90)], 10),
        ([condition("Created", True, 0), condition("Failed", True, 50)], 0),
        ([condition("Created", True, 0), condition("Succeeded", True, 50)], 0),
    ],
)
def test_a_job_is_pending_from_when_it_should_run_until_it_does(
    conditions: list[dict[str, Any]], pending: float
) -> None:
    page = Page()
    page.put(conditions=conditions)
    page.now = START + timedelta(seconds=100)
    assert page.value("trainyard_job_pending_seconds") == pending


def test_a_suspended_job_is_not_pending() -> None:
    page = Page()
    page.cache.put_job(make_job(suspend=True, status={"conditions": [condition("Created", True, 0)]}))
    page.now = START + timedelta(seconds=100)
    assert page.value("trainyard_job_pending_seconds") == 0


def test_the_wait_of_a_real_job_is_seen() -> None:
    """The conditions that the wait is measured by are those that the plan sets."""
    life = Simulation(replicas=2)
    registry = CollectorRegistry()
    registry.register(JobCollector(life.operator.cache, lambda: life.cluster.now))
    try:
        life.deliver(jobs=9, pods=9)
        for _ in range(4):
            life.reconcile()
        life.cluster.pass_time(300)
        waited = registry.get_sample_value("trainyard_job_pending_seconds", dict(zip(LABELS, KEY, strict=True)))
        assert waited == pytest.approx(300, abs=5)
        life.run_smoothly(20)
        assert registry.get_sample_value("trainyard_job_pending_seconds", dict(zip(LABELS, KEY, strict=True))) == 0
    finally:
        life.close()


LABELS = ("namespace", "job_name")


async def test_a_thousand_jobs_that_come_and_go_leave_nothing_behind() -> None:
    cache: Cache = Cache()
    metrics = OperatorMetrics(cache, WorkQueue())
    metrics.count_request("POST", 201)
    metrics.observe_reconcile(0.01, "Done")
    before = len(generate_latest(metrics.registry).splitlines())
    for number in range(1000):
        job = make_job(name=f"job-{number}", uid=f"uid-{number}", status={"attempt": 1, "phase": "Running"})
        pod = make_pod(job, 0)
        cache.put_job(job)
        cache.put_pod(pod)
        assert f'job_name="job-{number}"' in generate_latest(metrics.registry).decode()
        cache.remove_job(job.key, f"uid-{number}")
        cache.remove_pod(pod)
        assert len(generate_latest(metrics.registry).splitlines()) == before
