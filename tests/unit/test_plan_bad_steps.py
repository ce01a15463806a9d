"""Skipped steps: each is reported once, and the job is degraded while they are recent."""

import pytest

from tests.builders import make_progress, make_worker, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.resource.status import ConditionType as C
from trainyard_operator.lifecycle.degradation import RECENT_STEPS


def training() -> Story:
    story = running(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}})
    return reads(story, make_progress(step=10))


def reads(story: Story, page: Progress) -> Story:
    story.events.clear()
    story.progress = page
    story.settle()
    return story


def reported(story: Story) -> list[tuple[str, str]]:
    return [(e.reason, e.message) for e in story.events if e.reason in ("BadSteps", "RolledBack")]


def degraded(story: Story) -> tuple[str, str] | None:
    found = story.job.status.condition(C.DEGRADED)
    return (found.status, found.reason) if found else None


def test_each_skipped_step_is_reported_once_and_degrades_the_job_for_a_while() -> None:
    story = training()
    assert degraded(story) is None, "nothing was ever wrong"
    reads(story, make_progress(step=21, skipped_steps=1, last_skipped_step=20))
    text = "attempt 1: step 20 was skipped, since the gradient was not finite or spiked"
    assert reported(story) == [("BadSteps", f"{text} (spec.health.badSteps.limit is 5 consecutive steps)")]
    assert degraded(story) == ("True", "BadSteps")
    reads(story, make_progress(step=30, skipped_steps=1, last_skipped_step=20))
    assert reported(story) == []
    reads(story, make_progress(step=40, skipped_steps=4, last_skipped_step=39))
    assert reported(story)[0][1].startswith("attempt 1: 3 steps up to 39 were skipped")
    reads(story, make_progress(step=39 + RECENT_STEPS, skipped_steps=4, last_skipped_step=39))
    assert degraded(story) == ("False", "Healthy")


@pytest.mark.parametrize(("limit", "phase"), [(0, "Failed"), (1, "Restarting")])
def test_an_attempt_that_fails_by_bad_steps_names_the_rank_of_the_bad_gradient(limit: int, phase: str) -> None:
    """All ranks fail together, and the culprit is not in the first pod."""
    story = running(trainer=trainer_spec(), restartPolicy={"maxRestarts": limit})
    words = [
        termination_message(
            rank=rank, exception="BadSteps", message="nan, which came from rank 1", step=7, peer_lost=rank == 0
        )
        for rank in range(2)
    ]
    code = constants.EXIT_BAD_STEPS
    story.see(
        *(make_worker(i, state="Failed", exit_code=code, termination_message=words[i]) for i in range(2))
    ).settle()
    failure = story.status.last_failure
    assert failure is not None
    assert (failure.reason, failure.rank, failure.step, failure.exit_code) == ("BadSteps", 1, 7, code)
    assert (failure.pod, failure.message) == ("job-1-1", "nan, which came from rank 1")
    assert (story.phase, story.status.restarts_counted) == (phase, limit)


def test_steps_skipped_at_the_end_are_reported_from_the_termination_message() -> None:
    story = training()
    final = make_progress(step=100, skipped_steps=1, last_skipped_step=99)
    words = [termination_message(rank=0, progress=final), ""]
    story.events.clear()
    story.see(*(make_worker(i, state="Succeeded", termination_message=words[i]) for i in range(2))).settle()
    assert reported(story)[0][1].startswith("attempt 1: step 99 was skipped")
    assert degraded(story) == ("False", "Finished")
    assert story.phase == "Succeeded"


def test_a_rollback_is_reported_once() -> None:
    page = make_progress(step=15, skipped_steps=5, last_skipped_step=20, rollbacks=1, checkpoint_step=15)
    story = reads(training(), page)
    assert reported(story)[1] == (
        "RolledBack",
        "attempt 1: rolled back to the checkpoint of step 15; continuing with new samples",
    )
    assert degraded(story) == ("True", "BadSteps")
    assert reported(reads(story, page.replace(step=16))) == []
