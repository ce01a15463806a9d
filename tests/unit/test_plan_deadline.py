"""spec.activeDeadlineSeconds: only time in which all workers run counts, over all attempts together."""

import pytest

from tests.builders import make_job, make_worker
from tests.support.story import Story, running
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.actions import DeleteWorkers


def test_a_job_fails_when_its_workers_have_run_for_as_long_as_they_may() -> None:
    story = running(activeDeadlineSeconds=60)
    assert story.settle().wake_after == 60
    assert story.later(59).settle().wake_after == 1
    step = story.later(1).settle()
    assert story.phase == Phase.FAILED
    failed = story.condition("Failed")
    assert (failed.reason, failed.message) == (
        "DeadlineExceeded",
        "all workers have run for 60 s in total (spec.activeDeadlineSeconds)",
    )
    assert step.actions == (DeleteWorkers(story.workers),), "the pods end, and save a checkpoint first"
    assert story.status.running_seconds == 60
    assert story.status.restarts == 0


def test_waiting_for_nodes_does_not_count() -> None:
    story = Story(make_job(activeDeadlineSeconds=60))
    story.settle()
    story.all("Pending").later(1000).settle()
    story.see(make_worker(0), make_worker(1, state="Pending")).later(1000).settle()
    assert story.phase == Phase.PENDING
    story.all("Running").settle()
    assert story.settle().wake_after == 60


def test_suspension_does_not_count_and_earlier_time_is_not_forgotten() -> None:
    story = running(activeDeadlineSeconds=60)
    story.later(40).edit(suspend=True).settle()
    story.see().settle()
    assert (story.phase, story.status.running_seconds) == (Phase.SUSPENDED, 40)
    story.later(1000).edit(suspend=False).settle()
    story.all("Running").later(500).settle()
    assert story.phase == Phase.RUNNING
    assert story.settle().wake_after == 20
    story.later(20).settle()
    assert story.condition("Failed").reason == "DeadlineExceeded"


def test_restarts_do_not_count_and_the_attempts_add_up() -> None:
    story = running(activeDeadlineSeconds=60)
    story.later(25).see(make_worker(0, state="Failed"), make_worker(1)).settle()
    story.later(300).see().settle()
    story.all("Running").settle()
    assert (story.status.attempt, story.status.running_seconds) == (2, 25)
    story.later(35).settle()
    assert (story.phase, story.status.running_seconds) == (Phase.FAILED, 60)


def test_a_failure_after_the_deadline_leads_to_no_further_attempt() -> None:
    """The operator was away: when it returns, a worker has failed and the deadline has passed."""
    story = running(activeDeadlineSeconds=60)
    story.later(100).see(make_worker(0, state="Failed"), make_worker(1)).settle()
    assert (story.condition("Failed").reason, story.status.attempt) == ("DeadlineExceeded", 1)


def test_a_success_comes_before_the_deadline() -> None:
    story = running(activeDeadlineSeconds=60)
    story.later(100).all("Succeeded").settle()
    assert story.phase == Phase.SUCCEEDED


@pytest.mark.parametrize(("limit", "phase"), [(None, Phase.RUNNING), (500, Phase.RUNNING), (30, Phase.FAILED)])
def test_the_deadline_may_be_changed_while_the_job_runs(limit: int | None, phase: Phase) -> None:
    story = running(activeDeadlineSeconds=60)
    story.later(40).edit(active_deadline_seconds=limit).settle()
    assert story.phase == phase
