"""Attempts that run and never make a step: they are restarted, if that is known and not merely unseen."""

from typing import Any

from tests.builders import after, make_job, make_progress, make_worker, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol.progress import Progress
from trainyard.resource.status import Phase, Reason
from trainyard_operator.lifecycle.observation import CreationError


def starting(seconds: int = 600, limit: int = 1) -> Story:
    """A job of the built-in trainer whose workers all run, at `NOW`."""
    policy = {"maxRestarts": limit, "backoff": {"initialSeconds": 0}}
    return running(trainer=trainer_spec(), health={"startupTimeoutSeconds": seconds}, restartPolicy=policy)


def page(story: Story, step: int = 0, *, attempt: int = 1, **fields: Any) -> Progress:
    """Rank 0's page, read now."""
    return Progress(attempt=attempt, step=step, updated_at=story.now, **fields)


def test_a_group_without_a_step_in_time_is_restarted_and_that_counts() -> None:
    story = starting()
    assert story.step().wake_after == 600
    story.later(599)
    story.progress = page(story)
    assert (story.step().wake_after, story.status.attempt) == (1, 1)
    story.later(1)
    story.progress = page(story)
    story.step()
    assert (story.status.attempt, story.status.restarts_counted) == (2, 1)
    restarting = story.condition("Restarting")
    assert (restarting.status, restarting.reason) == ("True", "StartupTimeout")
    failure = story.status.last_failure
    assert failure is not None
    assert (failure.attempt, failure.reason, failure.at) == (1, "StartupTimeout", after(600))
    assert failure.message == "no step within 600 s after all workers were running (spec.health.startupTimeoutSeconds)"
    assert restarting.message.startswith("attempt 1: the group failed: StartupTimeout: no step within 600 s")


def test_each_attempt_has_the_complete_timeout_and_the_limit_ends_the_job() -> None:
    story = starting(limit=1)
    for attempt in (1, 2):
        story.all("Running").settle()
        assert story.later(300).settle().wake_after == 300
        story.later(300)
        story.progress = page(story, attempt=attempt)
        story.settle()
        story.progress = None
        story.see().settle()
    assert story.phase == Phase.FAILED
    assert story.condition("Failed").reason == "RestartLimitReached"


def test_the_default_is_half_an_hour() -> None:
    assert running(trainer=trainer_spec()).step().wake_after == 1800


def test_the_first_step_ends_the_wait() -> None:
    story = starting()
    story.later(599)
    story.progress = page(story, 1)
    assert story.step().wake_after is None
    assert story.later(10_000).step().wake_after is None
    assert (story.phase, story.status.attempt) == (Phase.RUNNING, 1)


def test_the_step_of_a_loaded_checkpoint_is_no_step_of_the_attempt() -> None:
    story = starting().later(600)
    story.progress = page(story, 80, resumed_step=80)
    story.step()
    assert story.status.attempt == 2
    going = starting().later(600)
    going.progress = page(going, 81, resumed_step=80)
    going.step()
    assert (going.status.attempt, going.condition("Progressing").status) == (1, "True")


def test_a_page_that_cannot_be_read_is_no_evidence_and_the_condition_says_so() -> None:
    story = starting()
    assert story.condition("Progressing").message == "attempt 1 has not finished its first step yet"
    step = story.later(100_000).step()
    assert (step.wake_after, story.phase, story.status.attempt) == (None, Phase.RUNNING, 1)
    assert story.condition("Progressing").message == (
        "attempt 1: whether it makes steps is unknown, since rank 0's metrics page cannot be read; "
        "spec.health.startupTimeoutSeconds is therefore not enforced; allow the operator to reach port 9400 of the pods"
    )


def test_a_page_that_was_read_before_the_deadline_is_no_evidence() -> None:
    story = starting()
    story.later(599)
    story.progress = page(story)
    story.later(100).step()
    assert (story.phase, story.status.attempt) == (Phase.RUNNING, 1), "it may have made a step since"
    story.progress = page(story)
    story.step()
    assert story.status.attempt == 2


def test_the_page_of_an_earlier_attempt_is_no_evidence() -> None:
    story = starting().see(make_worker(0, state="Failed"), make_worker(1))
    story.settle()
    story.see().settle()
    story.all("Running").settle()
    story.later(600)
    story.progress = page(story, attempt=1)
    story.step()
    assert story.status.attempt == 2


def test_a_group_that_does_not_run_yet_has_no_deadline() -> None:
    story = Story(make_job(trainer=trainer_spec(), health={"startupTimeoutSeconds": 5}))
    story.settle()
    story.creation_error = CreationError(Reason.PODS_REFUSED, "quota")
    story.later(1000).settle()
    story.creation_error = None
    story.all("Running").settle()
    assert (story.step().wake_after, story.status.attempt) == (5, 1)


def test_a_rule_may_exclude_a_startup_timeout_from_the_limit() -> None:
    rules = [{"onReasons": ["StartupTimeout"], "action": "RestartIgnoringLimit"}]
    story = running(trainer=trainer_spec(), restartPolicy={"maxRestarts": 0, "rules": rules}).later(1800)
    story.progress = page(story)
    story.step()
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 0)
    assert story.condition("Restarting").reason == "StartupTimeout"


def test_step_zero_does_not_hide_how_far_the_attempt_before_had_come() -> None:
    story = starting()
    story.progress = make_progress(50)
    story.settle()
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    story.see().settle()
    story.all("Running").later(5)
    story.progress = page(story, attempt=2)
    story.settle()
    assert story.status.progress == make_progress(50)
    assert story.condition("Progressing").status == "False"


def test_the_timeout_does_not_count_the_preparation_of_data() -> None:
    story = starting()
    for share, seconds in ((0.1, 1000), (0.5, 2000), (0.9, 3000)):
        story.later(1000)
        story.progress = page(story, data_prepared=share, data_preparation_seconds=seconds)
        story.step()
        assert story.status.attempt == 1
        assert story.condition("Progressing").message == f"attempt 1 prepares its data: {share:.0%}"
    story.progress = page(story, data_prepared=1.0, data_preparation_seconds=2900)
    assert story.step().wake_after == 500
    assert story.condition("Progressing").message == "attempt 1 has not finished its first step yet"
    story.later(500)
    story.progress = page(story, data_prepared=1.0, data_preparation_seconds=2900)
    story.step()
    assert story.status.attempt == 2


def test_a_preparation_without_progress_is_counted() -> None:
    story = starting().later(600)
    story.progress = page(story, data_prepared=0.1, data_preparation_seconds=100)
    assert story.step().wake_after == 100
    story.later(100)
    story.progress = page(story, data_prepared=0.1, data_preparation_seconds=100)
    story.step()
    assert story.status.attempt == 2


def test_no_page_can_claim_more_time_than_has_passed() -> None:
    story = starting().later(600)
    story.progress = page(story, data_prepared=0.5, data_preparation_seconds=1e9)
    assert story.step().wake_after == 600


def test_an_evaluation_makes_no_step_and_has_no_timeout() -> None:
    story = running(trainer=trainer_spec(task="evaluate"), health={"startupTimeoutSeconds": 600})
    assert story.condition("Progressing").reason == Reason.EVALUATING
    assert story.step().wake_after is None
    story.later(10_000)
    story.progress = page(story, 80, resumed_step=80, eval_loss=0.5, metrics={"loss": 0.5})
    story.settle()
    assert (story.phase, story.status.attempt) == (Phase.RUNNING, 1)
    assert story.condition("Progressing").status == "True"
    assert story.status.progress is not None
    assert (story.status.progress.step, story.status.progress.eval_loss) == (80, 0.5)
