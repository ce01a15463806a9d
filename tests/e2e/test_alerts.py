"""Every alert fires for a real fault on a real node, reaches a real Alertmanager, and resolves once that is mended."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.alerts import (
    ABSENT,
    DOWN,
    LEADERLESS,
    PATIENCE,
    STUCK,
    TABLE,
    Times,
    Trouble,
    Watch,
    labels,
    running,
)
from tests.e2e.faults.scene import hook
from tests.e2e.node import Hands
from tests.e2e.prometheus import PORT, Prometheus, run_prometheus
from tests.e2e.world import OperatorPod, World, eventually, print_evidence

pytestmark = pytest.mark.e2e

HEALTHY = "healthy"


@pytest.fixture(scope="module")
def watch(open_world: World, operator_pod: OperatorPod, prometheus: Prometheus, hands: Hands) -> Iterator[Watch]:
    """What has been told of these jobs and of the operator, while one job is well all the time."""
    found = Watch(prometheus, frozenset({open_world.namespace, operator_pod.world.namespace}))
    open_world.apply(hook())
    with running(open_world, hands, HEALTHY, {}), found.looking():
        yield found


@pytest.fixture
def times(capsys: pytest.CaptureFixture[str]) -> Iterator[Times]:
    """How long each alert took. In the end it is printed."""
    found: Times = {}
    yield found
    with capsys.disabled():
        for alert, (fired, resolved) in found.items():
            print(f"\n{dict(alert)['alertname']:28} after {fired:3.0f} s, resolved after {resolved:3.0f} s", end="")


def go_through(trouble: Trouble, world: World, hands: Hands, operator: OperatorPod, watch: Watch) -> Times:
    """The life of one job."""
    with running(world, hands, trouble.job, trouble.spec, trouble.size) as job:
        try:
            if trouble.calm is not None:
                eventually(f"a step of {trouble.job}", lambda: watch.steps.get(trouble.job), PATIENCE)
                time.sleep(trouble.calm)
            expected = trouble.expected(world.namespace)
            return watch.see(expected, lambda: trouble.harm(job), lambda: trouble.mend(job))
        except BaseException:
            print_evidence(world, operator)
            raise


def test_troubles_of_jobs_are_alerts_and_a_healthy_job_is_none(
    open_world: World, operator_pod: OperatorPod, hands: Hands, watch: Watch, times: Times
) -> None:
    with ThreadPoolExecutor(len(TABLE)) as executor:
        lives = [executor.submit(go_through, trouble, open_world, hands, operator_pod, watch) for trouble in TABLE]
    assert not (problems := list(filter(None, (life.exception() for life in lives)))), problems
    for life in lives:
        times.update(life.result())
    assert watch.since.keys() == times.keys(), "and no other, of any job or of the operator"
    assert watch.flaws == set()


def test_troubles_of_the_operator_are_alerts(
    operator_pod: OperatorPod, hands: Hands, watch: Watch, times: Times, tmp_path: Path
) -> None:
    before, where = set(watch.since), {"namespace": operator_pod.world.namespace}
    stuck, leaderless, down = (frozenset({labels(name, **where)}) for name in (STUCK, LEADERLESS, DOWN))
    absent = frozenset({labels(ABSENT)})
    eventually("the healthy job at work", lambda: watch.steps.get(HEALTHY), PATIENCE)
    with ExitStack() as stack:
        times |= watch.see(stuck, lambda: stack.enter_context(hands.without("kube-apiserver")), stack.close)
    operator_pod.replace()  # the kubelet lets one that has ended often wait before it starts again
    times |= watch.see(
        leaderless, operator_pod.usurp, lambda: operator_pod.world.kubectl("delete", "lease", "trainyard")
    )
    replicas = operator_pod.scale(0)

    def come_back() -> None:
        """Seen by another Prometheus, which has never known an operator."""
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
