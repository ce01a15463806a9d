"""spec.schedulingTimeoutSeconds: a group that cannot be scheduled as a whole gives its nodes back and tries again."""

from datetime import timedelta

import pytest

from tests.builders import after, elastic, make_job, make_worker
from tests.support.story import Story, running
from trainyard.resource.status import Activity, Phase, Reason
from trainyard_operator.lifecycle.actions import CreateWorkers, DeleteWorkers
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import CreationError, WorkerPod
from trainyard_operator.lifecycle.scheduling_timeout import FIRST_WAIT, LONGEST_WAIT, SHORTEST_WAIT

BLOCKER = SchedulingBlocker(Reason.UNSCHEDULABLE, "pod job-1-1: cannot be scheduled: no GPU is free")


def group(attempt: int = 1, *, runs: int = 1, of: int = 2) -> list[WorkerPod]:
    """Pods of which only some have a node."""
    scheduled = [make_worker(i, attempt=attempt, replicas=of) for i in range(runs)]
    return scheduled + [
        make_worker(i, attempt=attempt, state="Pending", replicas=of, unscheduled=True, blocker=BLOCKER)
        for i in range(runs, of)
    ]


def waiting(timeout: int | None = 100) -> Story:
    """A group that has one of two nodes, and a timer."""
    story = Story(make_job(schedulingTimeoutSeconds=timeout) if timeout else make_job())
    story.settle()
    story.see(*group())
    story.settle()
    return story


def test_a_group_that_is_not_complete_in_time_gives_its_nodes_back() -> None:
    story = waiting()
    assert story.settle().wake_after == 100
    assert story.later(99).settle().wake_after == 1
    assert story.status.attempt == 1
    step = story.later(1).settle()
    assert step.actions == (DeleteWorkers(tuple(group())),), "also the pod that runs"
    status = story.status
    assert (status.attempt, status.restarts, status.restarts_counted, status.disruptions) == (2, 0, 0, 0)
    message = (
        "1 of 2 pods were not scheduled within 100 s (spec.schedulingTimeoutSeconds); deleting all pods of the group, "
        "and trying again as attempt 2 after a random wait; pod job-1-1: cannot be scheduled: no GPU is free"
    )
    condition = story.condition("Running")
    assert (condition.status, condition.reason, condition.message) == ("False", "SchedulingTimeout", message)
    assert [e.message for e in story.events if e.reason == "SchedulingTimeout"] == [message]
    assert story.phase == Phase.PENDING


def test_the_next_try_follows_after_a_random_wait_that_begins_when_the_pods_are_gone() -> None:
    story = waiting()
    story.later(100).settle()
    story.later(200).see(group()[0]).settle()
    assert story.condition("Running").reason == "SchedulingTimeout", "the condition keeps the cause"
    step = story.see().settle()
    assert step.actions == ()
    assert story.status.scheduling is not None
    retry = story.status.scheduling.retry_time
    assert retry is not None
    assert timedelta(seconds=SHORTEST_WAIT) <= retry - story.now <= timedelta(seconds=FIRST_WAIT)
    assert step.wake_after == (retry - story.now).total_seconds()
    assert story.condition("Running").message == (
        "not all pods of attempt 1 were scheduled in time (spec.schedulingTimeoutSeconds); the next try is at "
        f"{retry:%Y-%m-%dT%H:%M:%SZ}"
    )
    step = story.later((retry - story.now).total_seconds()).settle()
    assert step.actions == (CreateWorkers(2, (0, 1)),)
    assert [e.reason for e in story.events].count("SchedulingTimeout") == 1, "one event for each timeout"
    story.see(*group(2)).settle()
    assert story.condition("Running").reason == "Unschedulable"
    assert story.settle().wake_after == 100, "the attempt has all of its time"


def give_up(story: Story) -> float:
    """Let the current attempt time out; returns the wait before the next one."""
    story.see(*group(story.status.attempt)).settle()
    story.later(100).settle()
    story.see().settle()
    assert story.status.scheduling is not None
    assert story.status.scheduling.retry_time is not None
    wait = (story.status.scheduling.retry_time - story.now).total_seconds()
    story.later(wait).settle()
    return wait


def test_the_waits_differ_between_jobs_and_grow_up_to_a_limit() -> None:
    waits: dict[int, list[float]] = {}
    for job in range(20):
        story = Story(make_job(uid=f"uid-{job}", schedulingTimeoutSeconds=100))
        story.settle()
        for number in range(1, 8):
            waits.setdefault(number, []).append(give_up(story))
        assert story.status.restarts == 0
    for number, found in waits.items():
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1))
        assert SHORTEST_WAIT <= min(found) < 0.2 * longest
        assert 0.8 * longest < max(found) <= longest
    assert len(set(waits[2])) > 5


def test_a_group_that_was_complete_starts_to_count_again() -> None:
    story = waiting()
    give_up(story)
    story.all("Running").settle()
    assert (story.phase, story.status.scheduling) == (Phase.RUNNING, None)


def test_all_nodes_found_before_the_containers_start_is_complete() -> None:
    story = waiting()
    story.later(50).see(make_worker(0), make_worker(1, state="Pending")).settle()
    assert story.status.scheduling is None
    story.later(1000).settle()
    assert story.status.attempt == 1, "an image that cannot be pulled is no matter of nodes"


def test_pods_that_a_quota_refuses_are_not_scheduled_either() -> None:
    story = Story(make_job(schedulingTimeoutSeconds=100))
    story.settle()
    story.creation_error = CreationError(Reason.PODS_REFUSED, "exceeded quota")
    step = story.see(make_worker(0, state="Pending")).settle()
    assert (step.actions, step.wake_after) == ((CreateWorkers(1, (1,)),), 100)
    step = story.later(100).settle()
    assert (story.status.attempt, story.condition("Running").reason) == (2, "SchedulingTimeout")
    assert step.actions == (DeleteWorkers((make_worker(0, state="Pending"),)),)


def test_a_group_without_any_pod_holds_nothing_and_does_not_give_up() -> None:
    story = Story(make_job(schedulingTimeoutSeconds=100))
    story.settle()
    story.creation_error = CreationError(Reason.PODS_REFUSED, "exceeded quota")
    step = story.later(1000).settle()
    assert (step.actions, step.wake_after, story.status.attempt) == ((CreateWorkers(1, (0, 1)),), None, 1)


def test_without_a_timeout_a_group_waits_for_ever() -> None:
    story = waiting(timeout=None)
    assert story.status.scheduling is None
    story.later(1e6).settle()
    assert story.status.attempt == 1


def test_a_timeout_may_be_set_and_removed_at_any_time() -> None:
    story = waiting(timeout=None).later(1000)
    assert story.edit(scheduling_timeout_seconds=50).settle().wake_after == 50
    story.later(50).settle()
    story.see().settle()
    assert story.status.attempt == 2
    assert story.edit(scheduling_timeout_seconds=None).settle().actions == (CreateWorkers(2, (0, 1)),)
    assert story.status.scheduling is None


def test_a_failure_in_a_waiting_group_is_a_failure_and_the_wait_begins_again() -> None:
    story = waiting().later(60)
    evicted = make_worker(0, state="Failed", disrupted=True, reason="Evicted")
    story.see(evicted, group()[1]).settle()
    assert (story.status.attempt, story.status.restarts, story.status.disruptions) == (2, 1, 1)
    assert story.status.scheduling is None
    story.later(60).see().settle()
    assert story.see(*group(2)).settle().wake_after == 100


def test_a_suspension_ends_the_wait() -> None:
    story = waiting().later(100)
    story.settle()
    story.edit(suspend=True).settle()
    story.see().settle()
    assert story.phase == Phase.SUSPENDED
    step = story.edit(suspend=False).settle()
    assert step.actions == (CreateWorkers(3, (0, 1)),), "a resumed job need not wait"
    assert story.status.scheduling is None


def test_an_elastic_group_tries_with_fewer_workers_first() -> None:
    story = Story(make_job(replicas=2, schedulingTimeoutSeconds=100, **elastic(2)))
    story.settle()
    story.see(*group()).settle()
    story.later(100).settle()
    assert story.condition("Running").reason == "SchedulingTimeout", "fewer than minReplicas could be scheduled"
    assert story.status.elastic is not None
    assert story.status.elastic.unschedulable_since is None
    story = Story(make_job(replicas=2, schedulingTimeoutSeconds=100, **elastic(1)))
    story.settle()
    story.see(*group()).settle()
    story.later(60).settle()
    assert (story.status.workers.desired, story.status.restarts) == (1, 1)
    assert story.status.scheduling is None


def test_the_time_counts_as_before() -> None:
    """As startup before the first step, and as recovery when the job has run already."""
    story = waiting()
    story.later(100).settle()
    assert story.status.goodput is not None
    assert story.status.goodput.activity is Activity.STARTUP
    story = running(schedulingTimeoutSeconds=100)
    story.later(1000).see(make_worker(0, state="Failed"), make_worker(1)).settle()
    story.later(60).see().settle()
    story.see(*group(2)).settle()
    story.later(100).settle()
    assert (story.status.attempt, story.status.restarts) == (3, 1)
    assert story.status.goodput is not None
    assert story.status.goodput.activity is Activity.RECOVERY


@pytest.mark.parametrize("crash", [1, 2, 3])
def test_what_is_decided_is_in_the_status_before_it_is_done(crash: int) -> None:
    """An operator that starts again after any of the plans comes to the same result."""
    story = waiting().later(100)
    for _ in range(crash):
        story.step()
    again = Story(story.job, story.workers, story.now)
    assert again.settle().actions == (DeleteWorkers(tuple(group())),)
    assert (again.status.attempt, again.status.start_time) == (2, after(0))
