"""Workers that end before others: each success is remembered, so a pod may go when it has done its work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import after, make_job, make_progress, make_worker, served, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol.progress import Progress
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.actions import CreateWorkers
from trainyard_operator.lifecycle.successes import format_indexes, parse_indexes


def test_a_pod_that_has_succeeded_may_be_removed_while_others_run() -> None:
    story = running(replicas=3)
    workers = story.workers
    story.see(workers[0], make_worker(1, replicas=3, state="Succeeded"), workers[2]).settle()
    assert (story.status.succeeded_indexes, story.status.workers.succeeded) == ("1", 1)
    story.see(workers[0], workers[2]).later(600).settle()
    assert (story.phase, story.status.attempt, story.status.restarts) == (Phase.RUNNING, 1, 0)
    assert story.status.workers.succeeded == 1
    story.see(*(make_worker(i, replicas=3, state="Succeeded") for i in (0, 2))).settle()
    assert (story.phase, story.status.succeeded_indexes) == (Phase.SUCCEEDED, "0-2")
    assert story.see().settle().actions == ()
    assert story.status.workers.succeeded == 3, "also when all pods have been cleaned up"


def test_all_pods_may_be_removed_one_after_another() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded"), make_worker(1)).settle()
    story.see(make_worker(1, state="Succeeded")).settle()
    assert story.phase == Phase.SUCCEEDED


def test_a_success_survives_the_eviction_of_its_pod() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded", terminating=True), make_worker(1)).settle()
    assert (story.phase, story.status.succeeded_indexes) == (Phase.RUNNING, "0")


def test_a_pod_that_is_lost_beside_one_that_has_succeeded_restarts_the_whole_group() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded"), make_worker(1)).settle()
    story.see().settle()
    assert (story.status.attempt, story.status.succeeded_indexes) == (2, "")
    assert story.status.last_failure is not None
    assert story.status.last_failure.message.startswith("1 worker pods are gone")
    assert story.later(5).settle().actions == (CreateWorkers(2, (0, 1)),)


def test_a_resumed_job_starts_all_its_workers() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded"), make_worker(1)).settle()
    story.edit(suspend=True).settle()
    story.see().settle()
    story.edit(suspend=False)
    assert story.settle().actions == (CreateWorkers(2, (0, 1)),)
    assert story.status.succeeded_indexes == ""


def test_the_final_progress_of_rank_zero_outlives_its_pod_and_its_page() -> None:
    story = running(trainer=trainer_spec())
    story.progress = make_progress(step=90)
    story.settle()
    final = termination_message(rank=0, progress=Progress(step=100, total_steps=100, loss=1.25))
    story.see(make_worker(0, state="Succeeded", termination_message=final, finished_at=after(7)), make_worker(1))
    story.settle()
    story.progress = make_progress(step=95)
    story.see(make_worker(1)).settle()
    story.see(make_worker(1, state="Succeeded")).settle()
    assert story.phase == Phase.SUCCEEDED
    assert story.condition("Succeeded").message == "all workers succeeded at step 100, loss 1.2500"


def test_a_parameter_server_is_no_worker_that_succeeds() -> None:
    story = Story(make_job(**served()))
    story.settle()
    server = make_worker(2, is_parameter_server=True)
    story.see(make_worker(0), make_worker(1), server).settle()
    story.see(make_worker(0), make_worker(1), make_worker(2, is_parameter_server=True, state="Succeeded")).settle()
    assert (story.status.succeeded_indexes, story.status.workers.succeeded) == ("2", 0)
    story.see(*(make_worker(i, state="Succeeded") for i in range(2))).settle()
    assert story.phase == Phase.SUCCEEDED


def test_a_pod_that_ends_with_the_attempt_before_has_not_succeeded_in_the_next_one() -> None:
    story = running(restartPolicy={"inPlace": True, "backoff": {"initialSeconds": 20}})
    failed = make_worker(0, state="Failed", has_launcher=True, awaiting_restart=True)
    story.see(failed, make_worker(1, has_launcher=True)).settle()
    assert (story.status.attempt, story.status.pod_attempt) == (2, 1)
    story.see(failed, make_worker(1, has_launcher=True, state="Succeeded")).settle()
    assert story.status.succeeded_indexes == ""
    assert story.status.pod_attempt == 2, "the group gets new pods"


@given(st.sets(st.integers(0, 10_000), max_size=200))
def test_indexes_are_read_as_they_were_written(indexes: set[int]) -> None:
    assert parse_indexes(format_indexes(indexes)) == indexes


@pytest.mark.parametrize(
    ("text", "indexes"),
    [("", set()), ("0", {0}), ("0,2-4,7", {0, 2, 3, 4, 7}), ("x,1,-,3-,5-2,9999999999-1", {1, 3})],
)
def test_a_text_of_indexes_is_read_as_a_job_has_it(text: str, indexes: set[int]) -> None:
    assert parse_indexes(text) == indexes


def test_ten_thousand_indexes_fit_into_the_status() -> None:
    assert len(format_indexes(range(0, 10_000, 2))) < 65_536
