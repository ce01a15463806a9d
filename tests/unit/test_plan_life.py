"""The life of a job whose program does not fail: start, progress, end, suspension, resizing, recovery."""

import pytest

from tests.builders import NOW, after, make_job, make_progress, make_worker, served, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol.progress import Progress
from trainyard.resolve import spec_problems
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import SUMMARY_CONDITIONS, ConditionType, Phase, Reason
from trainyard_operator.lifecycle.actions import CreateWorkers, DeleteWorkers
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import CreationError


def test_a_new_job_is_recorded_before_any_pod_is_created() -> None:
    story = Story()
    first = story.step()
    assert (first.status.attempt, first.actions, first.wake_after) == (1, (), 0)
    assert first.status.start_time == NOW
    assert story.condition("Created").message == "world size 2: 2 workers x 1 rank"
    assert story.step().actions == (CreateWorkers(1, (0, 1)),)


def test_only_the_missing_pods_are_created() -> None:
    story = Story(make_job(replicas=4))
    story.settle()
    story.see(make_worker(1, replicas=4, state="Pending"), make_worker(3, replicas=4, state="Pending"))
    assert story.settle().actions == (CreateWorkers(1, (0, 2)),)


def test_a_job_is_running_only_when_every_worker_runs() -> None:
    story = Story()
    story.settle()
    story.see(make_worker(0), make_worker(1, state="Pending")).settle()
    assert story.phase == Phase.PENDING
    assert story.condition("Running").status == "False"
    assert story.condition("Running").message == "1 of 2 workers run"
    assert story.status.workers.running == 1
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    assert story.condition("Running").reason == "AllWorkersRunning"


def test_a_parameter_server_belongs_to_the_group_but_is_no_worker() -> None:
    story = Story(make_job(**served()))
    assert story.settle().actions == (CreateWorkers(1, (0, 1, 2)),)
    assert "2 workers x 1 rank and a parameter server" in story.condition("Created").message
    server = make_worker(2, is_parameter_server=True, state="Pending")
    story.see(make_worker(0), make_worker(1), server).settle()
    assert story.condition("Running").message == "2 of 3 pods run"
    story.see(make_worker(0), make_worker(1), make_worker(2, is_parameter_server=True)).settle()
    assert story.condition("Running").message == "attempt 1: 2 workers and their server run"
    assert (story.status.workers.desired, story.status.workers.running) == (2, 2)
    done = [make_worker(index, state="Succeeded", is_parameter_server=index == 2) for index in range(3)]
    story.see(*done[:2], make_worker(2, is_parameter_server=True)).settle()
    assert story.phase == Phase.RUNNING, "the server has not ended yet"
    story.see(*done).settle()
    assert story.phase == Phase.SUCCEEDED


def test_a_running_job_needs_no_further_reconciliation() -> None:
    story = running()
    before = story.status
    step = story.later(3600).step()
    assert (step.status, step.actions, step.wake_after, step.events) == (before, (), None, ())


def test_ready_workers_are_counted_while_they_run() -> None:
    story = running()
    story.see(make_worker(0, ready=True), make_worker(1, ready=False)).settle()
    assert story.status.workers.ready == 1


def test_progress_is_stepping_only_after_the_first_step() -> None:
    story = running(trainer=trainer_spec())
    assert story.condition("Progressing").status == "False"
    assert story.condition("Progressing").reason == "NoStepYet"
    story.progress = make_progress(step=1)
    story.settle()
    assert story.condition("Progressing").reason == "Stepping"
    assert story.status.progress == make_progress(step=1)


def test_progress_of_another_attempt_is_ignored() -> None:
    story = running(trainer=trainer_spec())
    story.progress = make_progress(step=50, attempt=7)
    story.settle()
    assert story.status.progress is None
    assert story.condition("Progressing").status == "False"


def test_a_users_own_program_need_not_report_steps() -> None:
    story = running()
    assert [c.type for c in story.status.conditions if c.type not in SUMMARY_CONDITIONS] == ["Created", "Running"]


def test_a_successful_job_has_the_final_progress_of_rank_zero() -> None:
    story = running(trainer=trainer_spec())
    story.progress = make_progress(step=90)
    story.settle()
    final = termination_message(rank=0, progress=Progress(step=100, total_steps=100, loss=1.25))
    story.see(
        make_worker(0, state="Succeeded", termination_message=final, finished_at=after(7)),
        make_worker(1, state="Succeeded", finished_at=after(8)),
    )
    step = story.later(10).settle()
    assert story.phase == Phase.SUCCEEDED
    assert story.condition("Succeeded").message == "all workers succeeded at step 100, loss 1.2500"
    assert story.condition("Running").status == "False"
    assert story.condition("Progressing").status == "False"
    progress = story.status.progress
    assert progress is not None
    assert (progress.step, progress.eta_seconds, progress.updated_at) == (100, 0.0, after(7))
    assert story.status.completion_time == after(10)
    assert step.actions == ()


def test_a_job_succeeds_only_when_every_worker_has() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded"), make_worker(1)).settle()
    assert story.phase == Phase.RUNNING


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_a_finished_job_never_changes_again(end: str) -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    story.all(end).settle()
    conditions, attempt = story.status.conditions, story.status.attempt
    recorded = len(story.events)
    story.edit(suspend=True).settle()
    story.edit(suspend=False, replicas=5).later(1000).settle()
    story.see().settle()
    assert (story.phase, story.status.conditions, story.status.attempt) == (end, conditions, attempt)
    assert len(story.events) == recorded


def test_a_finished_job_deletes_the_pods_that_still_hold_resources() -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    failed, left = make_worker(0, state="Failed"), make_worker(1)
    step = story.see(failed, left).settle()
    assert story.phase == Phase.FAILED
    assert step.actions == (DeleteWorkers((left,)),)


def test_terminating_pods_are_not_deleted_again() -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    story.all("Failed").settle()
    assert story.see(make_worker(0, terminating=True)).settle().actions == ()


# --- suspension -----------------------------------------------------------------------------------------------


def test_suspension_is_recorded_before_the_pods_are_deleted() -> None:
    story = running(trainer=trainer_spec()).edit(suspend=True)
    first = story.step()
    assert first.actions == ()
    assert (story.phase, story.condition("Suspended").reason) == (Phase.SUSPENDING, "Suspending")
    assert story.step().actions == (DeleteWorkers(story.workers),)
    assert story.status.workers.desired == 0
    assert {story.condition(c).status for c in ("Running", "Progressing")} == {"False"}


def test_a_job_is_suspended_only_when_no_pod_of_any_kind_is_left() -> None:
    story = running().edit(suspend=True)
    story.settle()
    for left in (make_worker(0, terminating=True), make_worker(1, state="Failed", terminating=True)):
        assert story.see(left).settle().actions == ()
        assert (story.phase, story.status.is_true(ConditionType.SUSPENDED)) == (Phase.SUSPENDING, False)
    story.see().settle()
    assert (story.phase, story.condition("Suspended").message) == (Phase.SUSPENDED, "no pod of the job is left")
    assert [e.reason for e in story.events][-2:] == ["Suspending", "Suspended"]


def test_what_pods_do_while_they_are_suspended_is_no_failure() -> None:
    story = running(restartPolicy={"maxRestarts": 0}).edit(suspend=True)
    story.settle()
    story.see(make_worker(0, state="Failed", terminating=True), make_worker(1, terminating=True)).settle()
    story.see().settle()
    assert (story.phase, story.status.restarts, story.status.last_failure) == (Phase.SUSPENDED, 0, None)


def test_a_state_that_was_not_saved_before_a_suspension_is_reported_once() -> None:
    story = running(trainer=trainer_spec(), restartPolicy={"maxRestarts": 0}).edit(suspend=True)
    story.settle()
    words = termination_message(rank=0, exception="FinalCheckpointFailed", message="disk is full", step=70)
    unsaved = make_worker(0, state="Failed", exit_code=81, termination_message=words, terminating=True)
    story.see(unsaved, make_worker(1, terminating=True)).settle()
    story.later(5).settle()
    assert (story.phase, story.status.restarts) == (Phase.SUSPENDING, 0)
    told = [e.message for e in story.events if e.reason == "FinalCheckpointFailed"]
    assert told == ["pod job-1-0 ended without saving its state: disk is full"]


def test_a_suspended_job_has_no_pods() -> None:
    story = running().edit(suspend=True)
    story.settle()
    step = story.see().settle()
    assert (step.actions, step.wake_after) == ((), None)
    assert story.phase == Phase.SUSPENDED


def test_resuming_starts_a_new_attempt_that_is_no_restart() -> None:
    story = running().edit(suspend=True)
    story.settle()
    story.see().settle()
    story.edit(suspend=False)
    assert story.settle().actions == (CreateWorkers(2, (0, 1)),)
    assert (story.status.attempt, story.status.restarts) == (2, 0)
    assert story.status.start_time == NOW
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING


def test_resuming_waits_for_the_old_pods_to_end() -> None:
    story = running().edit(suspend=True)
    story.settle()
    story.edit(suspend=False).all("Running", attempt=1, terminating=True)
    assert story.settle().actions == ()
    assert story.condition("Running").reason == "WaitingForOldPods"
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1)),)


def test_a_job_may_be_created_suspended() -> None:
    story = Story(make_job(suspend=True))
    assert story.settle().actions == ()
    assert (story.phase, story.status.attempt) == (Phase.SUSPENDED, 0)
    assert story.edit(suspend=False).settle().actions == (CreateWorkers(1, (0, 1)),)


def test_suspension_while_a_restart_is_due_drops_the_restart() -> None:
    story = running()
    story.see(make_worker(0, state="Failed"), make_worker(1)).step()
    assert story.phase == Phase.RESTARTING
    story.edit(suspend=True).settle()
    assert story.phase == Phase.SUSPENDING
    story.see().edit(suspend=False)
    assert story.later(60).settle().actions == (CreateWorkers(3, (0, 1)),)
    assert story.condition("Restarting").status == "False"


def test_an_unobserved_suspend_and_resume_changes_nothing() -> None:
    story = running()
    before = story.status.conditions
    story.edit(suspend=True).edit(suspend=False).settle()
    assert [(c.type, c.status) for c in story.status.conditions] == [(c.type, c.status) for c in before]
    assert story.status.attempt == 1


# --- resizing and recovery ------------------------------------------------------------------------------------


def test_a_new_size_restarts_the_group_without_counting() -> None:
    story = running().edit(replicas=3)
    story.step()
    assert (story.status.attempt, story.status.restarts, story.status.restarts_counted) == (2, 1, 0)
    assert story.condition("Restarting").reason == "SpecChanged"
    assert story.settle().actions == (DeleteWorkers(story.workers),)
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1, 2)),)


def test_a_new_size_before_any_pod_exists_needs_no_restart() -> None:
    story = Story()
    story.settle()
    assert story.edit(replicas=3).settle().actions == (CreateWorkers(1, (0, 1, 2)),)
    assert story.status.restarts == 0


def test_a_restored_older_status_adopts_the_newest_attempt() -> None:
    story = Story().all("Running", attempt=4)
    story.settle()
    assert story.status.attempt == 4
    assert story.phase == Phase.RUNNING
    assert story.condition("Created").status == "True"
    assert story.status.start_time == NOW


def test_pods_of_several_attempts_leave_only_the_newest() -> None:
    story = Story()
    old, new = make_worker(0, attempt=2), make_worker(0, attempt=3)
    step = story.see(old, new).settle()
    assert story.status.attempt == 3
    assert step.actions == (DeleteWorkers((old,)),)


def test_a_resumption_does_not_wait_for_the_backoff_of_an_earlier_failure() -> None:
    story = running(restartPolicy={"backoff": {"initialSeconds": 100}})
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    assert (story.see().settle().wake_after or 0) > 70
    story.later(10).edit(suspend=True).settle()
    story.edit(suspend=False)
    assert story.settle().actions == (CreateWorkers(3, (0, 1)),)


def test_a_new_size_does_not_wait_for_the_backoff_of_an_earlier_failure() -> None:
    story = running(restartPolicy={"inPlace": True, "backoff": {"initialSeconds": 20}})
    failed = make_worker(0, state="Failed", has_launcher=True, awaiting_restart=True)
    story.see(failed, make_worker(1, has_launcher=True)).settle()
    assert (story.status.attempt, story.status.pod_attempt) == (2, 1)
    story.later(10).edit(replicas=3).settle()
    assert story.see().settle().actions == (CreateWorkers(3, (0, 1, 2)),)


# --- the validation of the spec -------------------------------------------------------------------------------


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generations of the specs that were validated."""
    found: list[int] = []

    def count(job: TrainingJob) -> list[str]:
        found.append(job.metadata.generation)
        return spec_problems(job)

    monkeypatch.setattr("trainyard_operator.lifecycle.acceptance.spec_problems", count)
    return found


def test_a_spec_is_validated_when_the_job_starts_and_when_it_changes(validations: list[int]) -> None:
    story = Story(make_job(trainer=trainer_spec()))
    story.settle()
    assert validations == [1]
    story.all("Running").settle()
    story.progress = make_progress(step=1)
    story.later(10).settle()
    assert validations == [1], "nothing has changed"
    story.edit(replicas=4).settle()
    assert validations == [1, 2]
    story.see().settle()
    story.edit(suspend=True).settle()
    story.later(10).settle()
    assert validations == [1, 2, 3]
    story.edit(suspend=False).settle()
    assert validations == [1, 2, 3, 4]


def test_a_resumed_job_is_validated_again_since_the_operator_may_have_been_upgraded(validations: list[int]) -> None:
    story = Story(make_job(suspend=True))
    story.settle()
    story.edit(suspend=False)
    story.job = story.job.replace(status=story.status.replace(observed_generation=2))
    validations.clear()
    story.step()
    assert validations == [2]


def test_a_new_size_that_cannot_work_fails_a_running_job() -> None:
    story = running(trainer=trainer_spec()).edit(replicas=3)
    story.settle()
    assert story.condition("Failed").reason == "InvalidSpec"
    assert story.status.observed_generation == 2


def test_a_spec_that_cannot_work_fails_a_job_whose_status_was_lost() -> None:
    story = Story(make_job(replicas=3, trainer=trainer_spec())).all("Running", attempt=4)
    story.settle()
    assert (story.status.attempt, story.condition("Failed").reason) == (4, "InvalidSpec")


# --- what keeps a group from running --------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.IMAGE_PULL_FAILED, Reason.UNSCHEDULABLE, Reason.CONTAINER_CONFIG])
def test_a_scheduling_blocker_is_reported_with_the_number_of_workers_it_affects(reason: Reason) -> None:
    story = Story(make_job(replicas=3))
    story.settle()
    stuck = [
        make_worker(i, replicas=3, state="Pending", blocker=SchedulingBlocker(reason, f"pod {i}: no")) for i in (1, 2)
    ]
    story.see(make_worker(0, replicas=3), *stuck).settle()
    assert story.phase == Phase.PENDING
    assert (story.condition("Running").reason, story.condition("Running").message) == (
        reason,
        "2 of 3 workers: pod 1: no",
    )
    assert story.events[-1].type == "Warning"
    assert story.events[-1].reason == reason


def test_of_several_blockers_the_one_that_a_user_must_remove_is_reported() -> None:
    story = Story()
    story.settle()
    waits = make_worker(0, state="Pending", blocker=SchedulingBlocker(Reason.UNSCHEDULABLE, "no node"))
    broken = make_worker(1, state="Pending", blocker=SchedulingBlocker(Reason.IMAGE_PULL_FAILED, "no image"))
    story.see(waits, broken).settle()
    assert story.condition("Running").message == "1 of 2 workers: no image"


def test_a_lasting_blocker_is_reported_once() -> None:
    story = Story()
    story.settle()
    story.all("Pending", blocker=SchedulingBlocker(Reason.UNSCHEDULABLE, "no node"))
    for _ in range(5):
        story.later(10).settle()
    assert [e.reason for e in story.events].count("Unschedulable") == 1


def test_a_refused_pod_is_reported_and_retried() -> None:
    story = Story()
    story.settle()
    story.creation_error = CreationError(Reason.PODS_REFUSED, "quota exceeded")
    step = story.step()
    assert story.condition("Running").reason == "PodsRefused"
    assert step.actions == (CreateWorkers(1, (0, 1)),)
    story.creation_error = None
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING


@pytest.mark.parametrize("suspend", [False, True])
def test_a_spec_that_cannot_work_fails_at_once_without_pods(suspend: bool) -> None:
    story = Story(make_job(replicas=3, trainer=trainer_spec(), suspend=suspend))
    assert story.settle().actions == ()
    assert story.phase == Phase.FAILED
    assert story.condition("Failed").reason == "InvalidSpec"
    assert "must be a multiple of the 3 data-parallel ranks" in story.condition("Failed").message
    assert story.status.completion_time == NOW


def test_a_transition_keeps_its_time_as_long_as_the_condition_holds() -> None:
    story = running()
    since = story.condition("Running").last_transition_time
    story.later(100).see(make_worker(0, ready=True), make_worker(1)).settle()
    assert story.condition("Running").last_transition_time == since


def test_the_generation_that_was_observed_is_recorded() -> None:
    story = running().edit(suspend=True)
    story.settle()
    assert story.status.observed_generation == 2
    assert story.condition("Suspended").observed_generation == 2
