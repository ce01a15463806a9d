"""What a plan makes of queues, gangs that are missing, and schedulers that are silent."""

from typing import Any

from tests.builders import NOW, after, make_job, make_worker
from tests.support.story import Story, running
from trainyard.resource.status import Phase, Reason
from trainyard_operator.lifecycle.actions import DeleteWorkers
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import CreationError, WorkerPod

IN_QUEUE = SchedulingBlocker(Reason.QUEUED, "pod job-1-0: waits in the queue research")


def queued(attempt: int = 1) -> list[WorkerPod]:
    return [
        make_worker(i, attempt=attempt, state="Pending", unscheduled=True, gated=True, blocker=IN_QUEUE)
        for i in range(2)
    ]


def in_queue(**spec: Any) -> Story:
    story = Story(make_job(scheduling={"queue": "research"}, **spec))
    story.settle()
    story.see(*queued()).settle()
    return story


def test_a_group_in_a_queue_says_so_and_it_is_no_warning() -> None:
    story = in_queue()
    condition = story.condition("Running")
    assert (condition.status, condition.reason) == ("False", "Queued")
    assert condition.message == "2 of 2 workers: pod job-1-0: waits in the queue research"
    assert [(e.type, e.reason) for e in story.events if e.reason == "Queued"] == [("Normal", "Queued")]
    assert story.phase == Phase.PENDING


def test_the_time_in_a_queue_does_not_count_as_time_without_nodes() -> None:
    story = in_queue(schedulingTimeoutSeconds=60)
    for _ in range(3):
        assert story.later(1000).settle().actions == ()
    assert story.status.attempt == 1
    assert story.status.scheduling is None
    # It is admitted, and then not scheduled in time.
    pending = [make_worker(i, state="Pending", unscheduled=i == 1) for i in range(2)]
    story.see(*pending).settle()
    story.later(60).settle()
    assert story.status.attempt == 2


def test_a_preemption_by_the_queue_spends_no_restart() -> None:
    story = running(scheduling={"queue": "research"}, restartPolicy={"maxRestarts": 0})
    evicted: dict[str, Any] = {
        "disrupted": True,
        "terminating": True,
        "reason": "WorkloadEvictedDueToPreempted",
        "termination_message": "Preempted",
    }
    workers = [make_worker(i, **evicted) for i in range(2)]
    story.see(*workers).settle()
    status = story.status
    assert (status.attempt, status.restarts_counted, status.disruptions) == (2, 0, 1)
    assert status.last_failure is not None
    assert (status.last_failure.reason, status.last_failure.message) == ("WorkloadEvictedDueToPreempted", "Preempted")
    assert story.phase == Phase.RESTARTING


def test_pods_in_a_queue_are_deleted_when_the_job_is_suspended_and_it_is_suspended_when_they_are_gone() -> None:
    """The queue gives the quota away when the pods have ended, so no other part may rely on it before."""
    story = in_queue()
    story.edit(suspend=True)
    assert story.settle().actions == (DeleteWorkers(tuple(queued())),)
    assert story.phase == Phase.SUSPENDING
    story.see().settle()
    assert story.phase == Phase.SUSPENDED


def test_a_gang_scheduler_that_is_missing_is_a_condition() -> None:
    story = Story(make_job(scheduling={"gang": "volcano"}))
    story.settle()
    story.creation_error = CreationError(Reason.GANG_UNAVAILABLE, "spec.scheduling.gang: volcano needs Volcano")
    story.settle()
    condition = story.condition("Running")
    assert (condition.status, condition.reason) == ("False", "GangUnavailable")
    assert condition.message == "spec.scheduling.gang: volcano needs Volcano"


def test_a_scheduler_that_is_silent_is_reported_after_a_minute() -> None:
    story = Story(make_job(scheduling={"gang": "coscheduling"}))
    story.settle()
    pods = [make_worker(i, state="Pending", unscheduled=True, unseen_since=NOW) for i in range(2)]
    assert story.see(*pods).settle().wake_after == 60
    assert story.condition("Running").reason == "WaitingForPods"
    story.now = after(60)
    story.settle()
    condition = story.condition("Running")
    assert condition.reason == "SchedulerSilent"
    assert "no scheduler has reported about pod job-1-0 for more than 60 s" in condition.message
