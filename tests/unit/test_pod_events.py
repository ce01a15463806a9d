"""Which changes of pods are looked at at once, which together with others, and which not at all."""

from datetime import timedelta
from typing import Any

import pytest

from tests.builders import NOW, make_job, make_pod
from tests.support import clock, kubelet
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Deletion
from trainyard_operator.controller.pod_events import FIGURES_WAIT, SUCCESS_WAIT, deliver_pod
from trainyard_operator.controller.work_queue import WorkQueue

KEY = ("default", "job")
LATER = NOW + timedelta(seconds=1)
AT_ONCE = 0.0
PENDING, RUNNING = kubelet.scheduled(), kubelet.running(NOW)


class Group:
    """A job of three pods that was looked at a moment ago."""

    def __init__(self, *statuses: kubelet.Status) -> None:
        self.cache = Cache()
        self.cache.put_job(make_job(replicas=3))
        self.version = 10
        for index, status in enumerate(statuses):
            self.cache.put_pod(self.pod(index, status))

    def pod(self, index: int, status: kubelet.Status, **fields: Any) -> dict[str, Any]:
        self.version += 1
        return make_pod(make_job(replicas=3), index, status=status, version=self.version, **fields)

    def wait(self, index: int, status: kubelet.Status, *, gone: bool = False, **fields: Any) -> float | None:
        """Seconds from a change of a pod until its job is looked at; None: it is not."""
        found: list[float | None] = []

        async def scenario() -> None:
            queue = WorkQueue[Key]()
            queue.add(KEY)
            queue.done(await queue.get())
            deliver_pod(self.cache, queue, self.pod(index, status, **fields), gone=gone)
            timer = queue._timers.get(KEY)
            found.append(0.0 if len(queue) else timer.when() if timer is not None else None)

        clock.run(scenario())
        return found[0]


def test_while_the_pods_of_a_group_start_they_are_looked_at_together() -> None:
    group = Group(PENDING, PENDING, PENDING)
    assert group.wait(0, kubelet.unschedulable(), node=None) == FIGURES_WAIT
    assert group.wait(0, RUNNING) == FIGURES_WAIT
    assert group.wait(1, RUNNING) == FIGURES_WAIT
    assert group.wait(2, RUNNING) == AT_ONCE, "the last one: now the job runs"


def test_a_change_that_no_plan_depends_on_leads_to_no_look() -> None:
    group = Group(PENDING, RUNNING)
    assert group.wait(0, PENDING) is None
    assert group.wait(1, {**RUNNING, "qosClass": "Burstable"}) is None
    assert group.wait(1, kubelet.running(NOW, ip="10.0.0.9")) == FIGURES_WAIT, "its pages are elsewhere now"


def test_an_older_version_leads_to_no_look() -> None:
    group = Group(RUNNING)
    group.version = 1
    assert group.wait(0, PENDING) is None


@pytest.mark.parametrize(
    "status",
    [kubelet.ended(NOW, 1), kubelet.evicted(), kubelet.refused(), kubelet.waiting("InvalidImageName", "no")],
    ids=["failed", "evicted", "refused", "can never start"],
)
def test_a_failure_is_looked_at_at_once(status: kubelet.Status) -> None:
    group = Group(PENDING, PENDING, PENDING)
    assert group.wait(1, status) == AT_ONCE


def test_a_pod_that_is_not_ready_any_more_is_looked_at_at_once() -> None:
    group = Group(RUNNING, RUNNING, RUNNING)
    assert group.wait(1, kubelet.running(NOW, ready=False)) == AT_ONCE
    assert group.wait(1, RUNNING) == FIGURES_WAIT


def test_a_success_is_looked_at_soon_and_the_last_one_and_that_of_rank_0_at_once() -> None:
    group = Group(RUNNING, RUNNING, RUNNING)
    assert group.wait(1, kubelet.ended(LATER, 0)) == SUCCESS_WAIT
    assert group.wait(0, kubelet.ended(LATER, 0)) == AT_ONCE
    assert group.wait(2, kubelet.ended(LATER, 0)) == AT_ONCE


def test_what_others_do_to_a_pod_is_looked_at_at_once() -> None:
    group = Group(RUNNING, RUNNING, RUNNING)
    assert group.wait(1, RUNNING, terminating=True) == AT_ONCE
    assert group.wait(1, RUNNING, terminating=True, gone=True) == AT_ONCE
    assert group.wait(2, RUNNING, gone=True) == AT_ONCE


def test_the_end_of_pods_that_the_operator_has_deleted_is_looked_at_once_the_last_one_is_gone() -> None:
    group = Group(RUNNING, RUNNING, RUNNING)
    entry = group.cache.get(KEY)
    assert entry is not None
    entry.deletions |= {f"pod-1-{index}": Deletion(0.0, force=False) for index in range(3)}
    for index in range(3):
        assert group.wait(index, RUNNING, terminating=True) == FIGURES_WAIT
        assert group.wait(index, kubelet.ended(LATER, 143), terminating=True) == FIGURES_WAIT
    assert group.wait(0, RUNNING, gone=True) == FIGURES_WAIT
    assert group.wait(1, RUNNING, gone=True) == FIGURES_WAIT
    assert group.wait(2, RUNNING, gone=True) == AT_ONCE
    assert entry.deletions == {}


def test_pods_of_an_unknown_job_lead_to_no_look() -> None:
    group = Group(RUNNING)
    group.cache.remove_job(KEY, "uid-1")
    assert group.wait(0, kubelet.ended(NOW, 1)) is None
    assert group.wait(0, kubelet.ended(NOW, 1), gone=True) is None
