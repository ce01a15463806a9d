"""The summary conditions, and what tools make of them."""

from typing import Any

import pytest

from tests.builders import after, make_job, make_worker
from tests.support.story import Story, running
from trainyard.resource.status import SUMMARY_CONDITIONS, Condition, Phase
from trainyard_operator.lifecycle.condition_list import one_of_each_type
from trainyard_operator.lifecycle.observation import Acceptance


def kstatus(story: Story) -> str:
    """Return what kstatus computes for a custom resource.

    As in kubernetes-sigs/cli-utils, pkg/kstatus/status: the generation first, then Reconciling and Stalled, then Ready.
    """
    body = story.job.to_dict()
    held = {c["type"]: c["status"] for c in body["status"].get("conditions", ())}
    if body["status"]["observedGeneration"] != body["metadata"]["generation"] or held.get("Reconciling") == "True":
        return "InProgress"
    if held.get("Stalled") == "True":
        return "Failed"
    return "Current" if held.get("Ready", "True") == "True" else "InProgress"


def pending() -> Story:
    story = Story()
    story.settle()
    return story.all("Pending")


def restarting() -> Story:
    return running().see(make_worker(0, state="Failed"), make_worker(1))


def suspended(story: Story) -> Story:
    story.edit(suspend=True).settle()
    return story.see()


STORIES: dict[str, tuple[Any, str, str]] = {
    "pending": (pending, Phase.PENDING, "InProgress"),
    "running": (running, Phase.RUNNING, "Current"),
    "restarting": (restarting, Phase.RESTARTING, "InProgress"),
    "suspending": (lambda: running().edit(suspend=True), Phase.SUSPENDING, "InProgress"),
    "suspended": (lambda: suspended(running()), Phase.SUSPENDED, "Current"),
    "suspended from the beginning": (lambda: Story(make_job(suspend=True)), Phase.SUSPENDED, "Current"),
    "succeeded": (lambda: running().all("Succeeded"), Phase.SUCCEEDED, "Current"),
    "failed": (lambda: running(restartPolicy={"maxRestarts": 0}).all("Failed"), Phase.FAILED, "Failed"),
    "invalid": (lambda: Story(acceptance=Acceptance(problem="no pod")), Phase.FAILED, "Failed"),
}


@pytest.mark.parametrize(("make", "phase", "expected"), STORIES.values(), ids=STORIES.keys())
def test_tools_see_a_job_for_what_it_is(make: Any, phase: str, expected: str) -> None:
    story = make()
    story.settle()
    assert (story.phase, kstatus(story)) == (phase, expected)
    ready = story.condition("Ready")
    assert ready.status == ("True" if expected == "Current" else "False")
    assert story.status.is_true(SUMMARY_CONDITIONS[0]) == (phase in ("Succeeded", "Failed")), "Finished at either end"


def test_a_summary_says_why() -> None:
    story = pending()
    story.settle()
    assert story.condition("Ready").message == story.condition("Running").message == "0 of 2 workers run"
    assert story.condition("Reconciling").reason == "WaitingForPods"
    story = running(restartPolicy={"maxRestarts": 0}).all("Failed")
    story.settle()
    for kind in ("Ready", "Stalled", "Finished"):
        condition, cause = story.condition(kind), story.condition("Failed")
        assert (condition.reason, condition.message) == (cause.reason, cause.message)


def test_a_change_of_the_spec_is_in_progress_until_the_operator_has_seen_it() -> None:
    story = running()
    story.edit(ttl_seconds_after_finished=60)
    assert kstatus(story) == "InProgress"
    story.settle()
    assert kstatus(story) == "Current"


def test_the_time_of_a_summary_is_that_of_its_last_transition() -> None:
    story = pending()
    story.settle()
    story.later(10).see(make_worker(0), make_worker(1, state="Pending")).settle()
    assert story.condition("Ready").last_transition_time == after(0)
    story.later(10).all("Running").settle()
    assert story.condition("Ready").last_transition_time == after(20)
    assert story.condition("Reconciling").last_transition_time == after(20)


def test_a_job_that_an_earlier_version_has_finished_gets_its_summary_once() -> None:
    story = running().all("Succeeded")
    story.settle()
    others = tuple(c for c in story.status.conditions if c.type not in SUMMARY_CONDITIONS)
    story.job = story.job.replace(status=story.status.replace(conditions=others))
    story.step()
    first = story.status
    assert kstatus(story) == "Current"
    story.later(100).edit(ttl_seconds_after_finished=1000).settle()
    assert story.status.conditions == first.conditions


def test_a_list_with_two_conditions_of_a_type_is_repaired() -> None:
    """The API server refuses such a list, so the status could never be written again."""
    story = running()
    running_condition = story.condition("Running")
    foreign = Condition(type="Foreign", status="True", reason="r", last_transition_time=story.now)
    doubled = (*story.status.conditions, running_condition.replace(status="False"), foreign, foreign)
    story.job = story.job.replace(status=story.status.replace(conditions=doubled))
    story.settle()
    types = [c.type for c in story.status.conditions]
    assert len(types) == len(set(types))
    assert "Foreign" in types
    assert story.condition("Running") == running_condition
    assert one_of_each_type(()) == ()
