"""What a job reports about pods whose page or launcher cannot be used: in its own status, and it goes on."""

from tests.builders import make_progress, make_worker, trainer_spec
from tests.support.story import Story, running
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason

PROBLEM = "metrics page of pod job-1-0: trainyard_steps_total is 1e+300, not a count from 0 to 2147483647"


def reported(story: Story) -> tuple[str, str, str]:
    story.settle()
    found = story.condition(C.DEGRADED)
    return found.status, found.reason, found.message


def test_a_problem_of_the_page_is_a_condition_and_one_event() -> None:
    story = running(trainer=trainer_spec())
    story.events.clear()
    story.page_problem = PROBLEM
    for _ in range(3):
        assert reported(story) == ("True", "MetricsRefused", PROBLEM)
    assert [(e.type, e.reason, e.message) for e in story.events] == [("Warning", "MetricsRefused", PROBLEM)]
    assert story.phase == "Running"
    story.page_problem = None
    assert reported(story)[:2] == ("False", "Healthy")


def test_a_program_of_the_user_reports_it_too() -> None:
    story = running(metrics={})
    story.page_problem = PROBLEM
    assert reported(story) == ("True", "MetricsRefused", PROBLEM)


def test_something_more_important_stays() -> None:
    story = running(trainer=trainer_spec())
    story.page_problem = PROBLEM
    story.progress = make_progress(step=21, skipped_steps=1, last_skipped_step=20)
    assert reported(story)[1] == Reason.BAD_STEPS
    story.progress = make_progress(step=200, skipped_steps=1, last_skipped_step=20)
    assert reported(story)[1] == Reason.METRICS_REFUSED


def test_a_silent_launcher_is_reported_with_the_fix() -> None:
    story = running(trainer=trainer_spec())
    story.see(make_worker(0, ready=True), make_worker(1, ready=False, launcher_silent=True))
    status, reason, message = reported(story)
    assert (status, reason) == ("True", "LauncherSilent")
    assert message == (
        "pod job-1-1 is not ready, and its launcher does not answer on port 9401, so its group cannot be restarted in"
        " place; allow the operator to reach that port of the pods"
    )
    story.see(make_worker(0, ready=True), make_worker(1, ready=True))
    assert reported(story)[:2] == ("False", "Healthy")


def test_the_condition_ends_with_the_attempt() -> None:
    story = running(trainer=trainer_spec())
    story.page_problem = PROBLEM
    assert reported(story)[0] == "True"
    story.see(*(make_worker(i, state="Succeeded") for i in range(2)))
    assert reported(story)[:2] == ("False", "Finished")
