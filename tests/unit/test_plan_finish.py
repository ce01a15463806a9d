"""The end of a job: spec.successPolicy, cleanPodPolicy and ttlSecondsAfterFinished."""

from typing import Any

import pytest

from tests.builders import elastic, make_worker
from tests.support.story import Story, running
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.actions import DeleteJob, DeleteWorkers, ReleaseWorkers

# --- successPolicy --------------------------------------------------------------------------------------------


def test_rank_zero_decides_about_the_success_if_the_user_wants_that() -> None:
    story = running(successPolicy="RankZero")
    story.see(make_worker(0), make_worker(1, state="Succeeded")).settle()
    assert story.phase == Phase.RUNNING, "the success of another worker is not enough"
    other = make_worker(1)
    step = story.see(make_worker(0, state="Succeeded"), other).settle()
    assert story.phase == Phase.SUCCEEDED
    succeeded = story.condition("Succeeded")
    assert (succeeded.reason, succeeded.message) == ("RankZeroSucceeded", "worker 0, which ran rank 0, succeeded")
    assert step.actions == (DeleteWorkers((other,)),)


def test_the_success_of_rank_zero_comes_before_the_failure_of_another_worker() -> None:
    story = running(successPolicy="RankZero")
    story.see(make_worker(0, state="Succeeded"), make_worker(1, state="Failed")).settle()
    assert (story.phase, story.status.restarts) == (Phase.SUCCEEDED, 0)


def test_a_worker_that_fails_since_rank_zero_has_ended_is_no_failure_whoever_is_reported_first() -> None:
    story = running(successPolicy="RankZero")
    other = make_worker(1, state="Failed")
    step = story.see(make_worker(0), other).settle()
    assert (story.status.attempt, step.actions, step.wake_after) == (1, (), 3)
    story.later(1).see(make_worker(0, state="Succeeded"), other).settle()
    assert (story.phase, story.status.restarts) == (Phase.SUCCEEDED, 0)


def test_a_failure_before_the_success_of_rank_zero_restarts_the_group() -> None:
    story = running(successPolicy="RankZero")
    story.see(make_worker(0), make_worker(1, state="Failed")).settle()
    story.later(3).settle()
    assert (story.status.attempt, story.status.restarts_counted) == (2, 1)
    story = running(successPolicy="RankZero")
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    assert story.status.attempt == 2, "the failure of rank 0 itself waits for nothing"


# --- cleanPodPolicy -------------------------------------------------------------------------------------------


def failed(policy: str | None) -> Story:
    """A job that fails with the first failure."""
    spec: dict[str, Any] = {"cleanPodPolicy": policy} if policy else {}
    return running(restartPolicy={"maxRestarts": 0}, replicas=3, **spec)


ENDED, RUNS = make_worker(0, state="Failed", replicas=3), make_worker(1, replicas=3)
WITH_SIDECAR = make_worker(2, state="Succeeded", replicas=3, outlived=True, ended=False)


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [
        (None, (RUNS, WITH_SIDECAR)),
        ("Running", (RUNS, WITH_SIDECAR)),
        ("All", (ENDED, RUNS, WITH_SIDECAR)),
        ("None", ()),
    ],
)
def test_the_policy_says_which_pods_of_a_finished_job_are_deleted(policy: str | None, deleted: tuple[Any, ...]) -> None:
    story = failed(policy)
    step = story.see(ENDED, RUNS, WITH_SIDECAR).settle()
    assert story.phase == Phase.FAILED
    assert step.actions == ((DeleteWorkers(deleted),) if deleted else ())


@pytest.mark.parametrize(("policy", "released"), [("Running", True), ("None", True), ("All", False)])
def test_a_pod_that_awaits_a_restart_is_told_to_exit_unless_it_is_deleted(policy: str, released: bool) -> None:
    story = failed(policy)
    waiting = make_worker(0, state="Failed", replicas=3, has_launcher=True, awaiting_restart=True)
    others = [make_worker(index, state="Failed", replicas=3) for index in (1, 2)]
    step = story.see(waiting, *others).settle()
    assert step.actions == ((ReleaseWorkers((waiting,)),) if released else (DeleteWorkers((waiting, *others)),))


def test_a_placeholder_of_a_finished_job_is_always_deleted() -> None:
    story = running(cleanPodPolicy="None", **elastic())
    placeholder = make_worker(0, is_placeholder=True)
    workers = [make_worker(index, state="Succeeded") for index in range(2)]
    step = story.see(*workers, placeholder).settle()
    assert step.actions == (DeleteWorkers((placeholder,)),)


def test_the_policy_may_be_changed_when_the_job_has_finished() -> None:
    story = failed("None")
    assert story.see(ENDED, RUNS, WITH_SIDECAR).settle().actions == ()
    step = story.edit(clean_pod_policy="Running").settle()
    assert step.actions == (DeleteWorkers((RUNS, WITH_SIDECAR)),)


# --- ttlSecondsAfterFinished ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_a_finished_job_is_deleted_when_it_is_due(end: str) -> None:
    story = running(ttlSecondsAfterFinished=100, restartPolicy={"maxRestarts": 0})
    step = story.all(end).later(5).settle()
    assert (story.phase, step.actions, step.wake_after) == (end, (), 100)
    assert story.later(99).settle().actions == ()
    step = story.later(1).settle()
    assert (step.actions, step.wake_after, step.events) == ((DeleteJob(),), None, ())


def test_a_job_may_be_deleted_as_soon_as_its_end_is_recorded() -> None:
    story = running(ttlSecondsAfterFinished=0)
    story.all("Succeeded")
    while story.phase != Phase.SUCCEEDED:
        assert story.step().actions == ()
    assert story.step().actions == (DeleteJob(),)


def test_a_job_without_a_limit_stays() -> None:
    story = running()
    step = story.all("Succeeded").settle()
    assert (step.actions, step.wake_after) == ((), None)
    assert story.later(1e9).settle().actions == ()
    assert story.edit(ttl_seconds_after_finished=60).settle().actions == (DeleteJob(),), "it may be set later"


def test_a_job_that_runs_or_is_suspended_is_never_deleted() -> None:
    story = running(ttlSecondsAfterFinished=0)
    assert story.later(1e6).settle().actions == ()
    story.edit(suspend=True).settle()
    assert story.see().later(1e6).settle().actions == ()
    assert story.phase == Phase.SUSPENDED
