"""Every alert fires for a real fault on a real node, reaches a real Alertmanager, and resolves after the repair."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.alerts import (
    ABSENT,
    CALM_STEPS,
    DOWN,
    LEADERLESS,
    PATIENCE,
    STEP_SECONDS,
    STUCK,
    TABLE,
    Times,
    Trouble,
    Watch,
    labels,
    running,
)
from tests.e2e.faults.fault_job import hook
from tests.e2e.namespace import Namespace, OperatorPod, eventually, print_evidence
from tests.e2e.node_faults import NodeFaults
from tests.e2e.prometheus import PACE, PORT, Prometheus, run_prometheus

pytestmark = pytest.mark.e2e

HEALTHY = "healthy"
HEALTHY_STEP_SECONDS = 2 * STEP_SECONDS
"""The other jobs start and end all the time: only a few hundred milliseconds more per step would be an alert."""
KNOWN_STEPS = CALM_STEPS + int(PACE.slow_lag / HEALTHY_STEP_SECONDS)
"""Steps of the healthy job after which its usual throughput is known."""


@pytest.fixture(scope="module")
def watch(
    open_namespace: Namespace, operator_pod: OperatorPod, prometheus: Prometheus, node_faults: NodeFaults
) -> Iterator[Watch]:
    """Watch the alerts about these jobs and the operator, while one job stays healthy."""
    found = Watch(prometheus, frozenset({open_namespace.name, operator_pod.namespace.name}))
    open_namespace.apply(hook())
    quiet = running(open_namespace, node_faults, HEALTHY, {}, pace=HEALTHY_STEP_SECONDS)
    with quiet, found.looking():
        # While a dozen jobs import torch it is slower at times and faster at others: that must not be its usual speed.
        eventually("the healthy job has a usual speed", lambda: found.steps.get(HEALTHY, 0) >= KNOWN_STEPS, PATIENCE)
        yield found


@pytest.fixture
def times(capsys: pytest.CaptureFixture[str]) -> Iterator[Times]:
    """Collect how long each alert took; the times are printed at the end."""
    found: Times = {}
    yield found
    with capsys.disabled():
        for alert, (fired, resolved) in found.items():
            print(f"\n{dict(alert)['alertname']:28} after {fired:3.0f} s, resolved after {resolved:3.0f} s", end="")


def go_through(
    trouble: Trouble, namespace: Namespace, node_faults: NodeFaults, operator: OperatorPod, watch: Watch
) -> Times:
    """Run one job, cause its fault, and repair it."""
    with running(namespace, node_faults, trouble.job, trouble.spec, trouble.size) as job:
        try:
            if trouble.calm is not None:
                calm = f"{CALM_STEPS} steps of {trouble.job}"
                eventually(calm, lambda: watch.steps.get(trouble.job, 0) >= CALM_STEPS, PATIENCE)
                time.sleep(trouble.calm)
            expected = trouble.expected(namespace.name)
            return watch.see(expected, lambda: trouble.harm(job), lambda: trouble.mend(job))
        except BaseException:
            print_evidence(namespace, operator)
            raise


def test_troubles_of_jobs_are_alerts_and_a_healthy_job_is_none(
    open_namespace: Namespace, operator_pod: OperatorPod, node_faults: NodeFaults, watch: Watch, times: Times
) -> None:
    with ThreadPoolExecutor(len(TABLE)) as executor:
        lives = [
            executor.submit(go_through, trouble, open_namespace, node_faults, operator_pod, watch) for trouble in TABLE
        ]
    problems = [problem for life in lives if isinstance(problem := life.exception(), Exception)]
    if problems:
        raise ExceptionGroup("jobs whose alerts were not as expected", problems)
    for life in lives:
        times.update(life.result())
    assert watch.since.keys() == times.keys(), "and no other, of any job or of the operator"
    assert watch.flaws == set()


def test_troubles_of_the_operator_are_alerts(
    operator_pod: OperatorPod, node_faults: NodeFaults, watch: Watch, times: Times, tmp_path: Path
) -> None:
    before, where = set(watch.since), {"namespace": operator_pod.namespace.name}
    stuck, leaderless, down = (frozenset({labels(name, **where)}) for name in (STUCK, LEADERLESS, DOWN))
    absent = frozenset({labels(ABSENT)})
    eventually("the healthy job is training", lambda: watch.steps.get(HEALTHY), PATIENCE)
    with ExitStack() as stack:
        times |= watch.see(stuck, lambda: stack.enter_context(node_faults.without("kube-apiserver")), stack.close)
    operator_pod.replace()  # the kubelet would delay the restart of a container that has ended often
    times |= watch.see(
        leaderless, operator_pod.usurp, lambda: operator_pod.namespace.kubectl("delete", "lease", "trainyard")
    )
    replicas = operator_pod.scale(0)

    def come_back() -> None:
        """Bring the operator back, watched by another Prometheus, which has never scraped one."""
        with run_prometheus(watch.prometheus.cluster, tmp_path, PORT + 10) as late:
            other = Watch(late, watch.namespaces)
            with other.looking():
                times.update(other.see(absent, lambda: None, lambda: operator_pod.scale(replicas)))
        assert other.since.keys() == absent
        assert other.flaws == set()

    try:
        times |= watch.see(down, lambda: None, come_back)
    finally:
        operator_pod.scale(replicas)
    eventually("the operator", operator_pod.names)
    assert watch.since.keys() - before == stuck | leaderless | down
    assert watch.flaws == set()
