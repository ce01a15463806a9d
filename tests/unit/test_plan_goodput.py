"""Where the time of a job goes: parts that add up to the wall time, at every write, and never shrink."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import after, make_job, make_progress, make_worker, termination_message, trainer_spec
from tests.support.fake_cluster import check_goodput
from tests.support.story import Story
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Activity, Condition, ConditionType, Goodput, TrainingJobStatus
from trainyard_operator.lifecycle.goodput import account_time


class Timed(Story):
    """A story whose accounts are judged at each step."""

    def step(self) -> Any:
        old = self.status
        step = super().step()
        if self.status != old:
            check_goodput(old, self.status, self.now)
        return step

    @property
    def goodput(self) -> Goodput:
        assert self.status.goodput is not None
        return self.status.goodput

    def current(self) -> Activity | None:
        return self.goodput.activity

    def parts(self) -> dict[str, int]:
        """The parts that are not empty."""
        return {name: seconds for name, seconds in self.goodput.parts().items() if seconds}

    def trains(self, step: int, *, seconds: float, **fields: Any) -> "Timed":
        """Time passes, then the page shows this step."""
        self.later(seconds)
        self.progress = make_progress(step, attempt=self.status.attempt, updated_at=self.now, **fields)
        self.settle()
        return self

    def fails(self) -> "Timed":
        """A worker fails, the group goes away, and a new one runs, all at once."""
        attempt = self.status.attempt
        self.see(make_worker(0, attempt=attempt, state="Failed"), make_worker(1, attempt=attempt)).settle()
        self.see().settle()
        self.all("Running").settle()
        return self


def trained(**spec: Any) -> Timed:
    """A job of the built-in trainer whose pods run 20 s after it was taken up."""
    policy = {"maxRestarts": 9, "backoff": {"initialSeconds": 0}}
    story = Timed(make_job(**{"trainer": trainer_spec(), "restartPolicy": policy, **spec}))
    story.settle()
    story.later(20).all("Running").settle()
    return story


def test_the_time_until_the_first_step_is_startup_and_what_follows_is_productive() -> None:
    story = trained()
    assert (story.parts(), story.current(), story.goodput.ratio) == ({"startup": 20}, Activity.STARTUP, 0)
    story.trains(3, seconds=10)
    assert (story.parts(), story.current()) == ({"startup": 30}, Activity.PRODUCTIVE)
    story.trains(50, seconds=70)
    assert (story.parts(), story.goodput.ratio) == ({"startup": 30, "productive": 70}, 0.7)


def test_recovery_lasts_until_the_step_is_reached_again() -> None:
    story = trained().trains(1, seconds=0).trains(80, seconds=100)
    story.later(5).fails()
    assert story.parts() == {"startup": 20, "productive": 105}, "until the failure was seen"
    assert story.current() is Activity.RECOVERY
    story.trains(61, seconds=40, resumed_step=60).trains(79, seconds=19)
    assert story.parts() == {"startup": 20, "productive": 105, "recovery": 59}
    story.trains(85, seconds=6, resumed_step=60)
    assert (story.parts()["recovery"], story.current()) == (65, Activity.PRODUCTIVE)
    story.trains(90, seconds=5)
    assert story.parts() == {"startup": 20, "productive": 110, "recovery": 65}
    assert story.goodput.highest_step == 90


def test_a_second_failure_during_recovery_prolongs_it() -> None:
    story = trained().trains(80, seconds=10).fails().trains(10, seconds=30).fails().trains(5, seconds=7)
    assert story.goodput.parts()["recovery"] == 37
    assert story.current() is Activity.RECOVERY


def test_a_failure_before_the_first_step_is_recovery_too() -> None:
    story = trained()
    story.later(10).fails()
    story.trains(1, seconds=15)
    assert story.parts() == {"startup": 30, "recovery": 15}


def test_suspended_time_is_its_own_and_resuming_is_a_start() -> None:
    story = trained().trains(1, seconds=0).trains(50, seconds=100)
    story.edit(suspend=True).settle()
    story.later(3600).see().edit(suspend=False).settle()
    story.later(15).all("Running").settle()
    story.trains(50, seconds=5, resumed_step=50)
    assert story.current() is Activity.STARTUP, "no step of its own yet"
    story.trains(51, seconds=5, resumed_step=50)
    assert story.parts() == {"startup": 45, "productive": 100, "suspended": 3600}
    assert story.current() is Activity.PRODUCTIVE


def test_a_job_that_was_created_suspended_has_no_wall_time_yet() -> None:
    story = Timed(make_job(suspend=True))
    story.settle()
    assert story.status.goodput is None
    story.later(500).edit(suspend=False).settle()
    story.later(5).all("Running").settle()
    assert story.parts() == {"startup": 5}


def test_a_resize_is_recovery_without_a_failure() -> None:
    story = trained(trainer=trainer_spec(batch={"global": 12})).trains(1, seconds=0).trains(9, seconds=10)
    story.edit(replicas=3).settle()
    story.see().settle()
    story.later(30).all("Running").settle()
    assert story.parts() == {"startup": 20, "productive": 10, "recovery": 30}


def test_time_of_a_users_own_program_is_productive_while_it_runs() -> None:
    story = trained(trainer=None)
    assert (story.parts(), story.current()) == ({"startup": 20}, Activity.PRODUCTIVE)
    story.later(100).fails()
    story.later(50).all("Succeeded").settle()
    assert story.parts() == {"startup": 20, "productive": 150}
    assert (story.current(), story.goodput.accounted_at) == (None, after(170))


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_after_the_end_nothing_is_counted_any_more(end: str) -> None:
    story = trained(restartPolicy={"maxRestarts": 0}).trains(1, seconds=0).trains(100, seconds=60)
    words = termination_message(rank=0, progress=Progress(step=100)) if end == "Succeeded" else ""
    story.all(end, termination_message=words).settle()
    final = story.goodput
    story.later(1000).see().settle()
    assert (story.goodput, story.parts(), final.activity) == (final, {"startup": 20, "productive": 60}, None)
    assert final.accounted_at == story.status.completion_time


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_waiting_for_checkpoints_is_not_productive() -> None:
    story = trained().trains(1, seconds=0, checkpoint_stall_seconds=0.4)
    for number in range(1, 11):
        story.trains(number * 10, seconds=10, checkpoint_stall_seconds=0.4 + 0.7 * number)
    assert story.parts() == {"startup": 20, "productive": 93, "checkpoint": 7}
    assert story.goodput.ratio == round(93 / 120, 4)


def test_a_checkpoint_wait_that_is_reported_late_is_compensated() -> None:
    story = trained().trains(1, seconds=0).trains(1, seconds=5).trains(1, seconds=5).trains(1, seconds=5)
    story.trains(2, seconds=5, checkpoint_stall_seconds=18.0)
    assert story.parts() == {"startup": 20, "productive": 15, "checkpoint": 5}
    assert story.goodput.pending_checkpoint_seconds == 13
    story.trains(9, seconds=20, checkpoint_stall_seconds=18.0)
    assert story.parts() == {"startup": 20, "productive": 22, "checkpoint": 18}
    assert story.goodput.pending_checkpoint_seconds == 0


def test_each_attempt_counts_its_checkpoint_waits_from_zero() -> None:
    story = trained().trains(1, seconds=0).trains(50, seconds=100, checkpoint_stall_seconds=30.0).fails()
    story.trains(60, seconds=10, checkpoint_stall_seconds=4.0)
    assert story.parts() == {"startup": 20, "productive": 70, "checkpoint": 30, "recovery": 10}, "recovery has its own"
    story.trains(80, seconds=10, checkpoint_stall_seconds=10.0)
    assert story.parts() == {"startup": 20, "productive": 74, "checkpoint": 36, "recovery": 10}


# --- writes ---------------------------------------------------------------------------------------------------


def test_time_alone_is_no_reason_to_write() -> None:
    story = trained().trains(5, seconds=5)
    before = story.status
    step = story.later(5000).step()
    assert step.status == before
    story.trains(6, seconds=1)
    assert story.parts() == {"startup": 25, "productive": 5001}


def test_a_clock_that_goes_back_shrinks_no_part() -> None:
    job = trained().trains(5, seconds=5).job
    status = account_time(job, job.status.replace(restarts=1), after(-1000))
    assert status.goodput is not None
    assert job.status.goodput is not None
    assert status.goodput.parts() == job.status.goodput.parts()
    assert status.goodput.accounted_at == job.status.goodput.accounted_at


def test_a_job_that_an_older_operator_began_is_accounted_for_from_its_start() -> None:
    job = make_job(status={"attempt": 1, "startTime": "2030-01-01T12:00:00Z"})
    status = account_time(job, job.status.replace(attempt=2), after(90))
    assert status.goodput is not None
    assert status.goodput.parts()["startup"] == 90


conditions = st.sampled_from(
    [(), (ConditionType.RUNNING,), (ConditionType.SUSPENDED,), (ConditionType.RESTARTING,), (ConditionType.FAILED,)]
)
writes = st.tuples(
    st.floats(0, 10_000),  # seconds since the write before
    conditions,
    st.integers(0, 2),  # attempts and restarts that have been added
    st.integers(0, 1),
    st.none() | st.builds(Progress, step=st.integers(0, 100), checkpoint_stall_seconds=st.none() | st.floats(0, 500)),
)


@given(history=st.lists(writes, max_size=20), own=st.booleans())
def test_the_parts_add_up_over_any_history(history: list[Any], own: bool) -> None:
    story = Timed(make_job(trainer=None if own else trainer_spec()))
    story.settle()
    job = story.job
    for seconds, held, attempts, restarts, progress in history:
        story.later(seconds)
        job = written(job, story.now, held, attempts, restarts, progress)


def written(
    job: TrainingJob, now: Any, held: Any, attempts: int, restarts: int, progress: Progress | None
) -> TrainingJob:
    """The job after one more write, judged."""
    old = job.status
    new = TrainingJobStatus.model_validate(
        old.replace(
            attempt=old.attempt + attempts,
            restarts=old.restarts + restarts,
            progress=progress.replace(attempt=old.attempt) if progress else old.progress,
            conditions=tuple(
                Condition(type=kind, status="True", reason="R", last_transition_time=now) for kind in held
            ),
        ).model_dump()
    )
    new = account_time(job, new, now)
    if new != old and not old.finished:
        check_goodput(old, new, now)
        assert new.goodput is not None
        assert 0 <= (new.goodput.ratio or 0) <= 1
    return job.replace(status=new)


def test_a_status_with_accounts_is_one_that_the_api_server_takes() -> None:
    story = trained().trains(1, seconds=0).trains(50, seconds=100, checkpoint_stall_seconds=1.25)
    assert TrainingJobStatus.model_validate(story.status.to_dict()) == story.status
    assert story.status.to_dict()["goodput"] == {
        "productiveSeconds": 99,
        "startupSeconds": 20,
        "checkpointSeconds": 1,
        "recoverySeconds": 0,
        "suspendedSeconds": 0,
        "ratio": 0.825,
        "activity": "Productive",
        "accountedAt": "2030-01-01T12:02:00Z",
        "highestStep": 50,
        "pendingCheckpointSeconds": 0.25,
    }


def test_time_of_a_program_that_reports_steps_is_productive_only_while_it_makes_them() -> None:
    story = trained(trainer=None, metrics={})
    story.later(100).fails()
    assert story.parts() == {"startup": 120}, "an attempt that never reported a step"
    story.trains(5, seconds=30).trains(9, seconds=10)
    assert story.parts() == {"startup": 120, "recovery": 30, "productive": 10}
