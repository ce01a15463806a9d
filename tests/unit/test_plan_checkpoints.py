"""Events about checkpoints: each is recorded once, however often the job is reconciled."""

from tests.builders import make_progress, make_worker, termination_message, trainer_spec
from tests.support.story import Story, running
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob


def training() -> Story:
    """A job that has made steps, without an event about checkpoints."""
    story = running(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}, "everySteps": 5})
    return reads(story, make_progress(step=10))


def reads(story: Story, page: Progress) -> Story:
    """The page shows this, and an operator that has only just started sees it: all it knows is the stored status."""
    story.events.clear()
    story.progress = page
    story.job = TrainingJob.from_dict(story.job.to_dict())
    story.settle()
    return story


def reported(story: Story) -> list[tuple[str, str, str]]:
    return [(e.type, e.reason, e.message) for e in story.events if e.reason.startswith("Checkpoint")]


def test_a_resumed_run_reports_its_checkpoint_once() -> None:
    story = reads(training(), make_progress(step=40, resumed_step=40))
    assert reported(story) == [("Normal", "CheckpointLoaded", "attempt 1: continuing after step 40")]
    assert reported(reads(story, make_progress(step=47, resumed_step=40))) == []


def test_each_attempt_reports_its_checkpoint() -> None:
    story = reads(training(), make_progress(step=40, resumed_step=40))
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    story.see().settle()
    story.all("Running").settle()
    story = reads(story, make_progress(step=41, attempt=2, resumed_step=40))
    assert [message for _, _, message in reported(story)] == ["attempt 2: continuing after step 40"]


def test_a_damaged_checkpoint_is_reported_with_its_consequence() -> None:
    story = reads(training(), make_progress(step=20, resumed_step=20, checkpoints_damaged=1))
    assert reported(story)[0] == (
        "Warning",
        "CheckpointDamaged",
        "attempt 1: a checkpoint is damaged, so the run resumed from an older one; see the log of pod job-1-0",
    )
    assert reported(reads(story, make_progress(step=21, resumed_step=20, checkpoints_damaged=1))) == []
    story = reads(training(), make_progress(step=1, checkpoints_damaged=2))
    assert [message for _, _, message in reported(story)] == [
        "attempt 1: 2 checkpoints are damaged, and there is no other one, so the run started from step 0; "
        "see the log of pod job-1-0"
    ]


def test_each_checkpoint_that_cannot_be_written_is_reported() -> None:
    story = reads(training(), make_progress(step=11, checkpoint_failures=1))
    assert reported(story) == [
        (
            "Warning",
            "CheckpointFailed",
            "attempt 1: a checkpoint could not be written; training continues; there is no checkpoint yet; "
            "see the log of pod job-1-0",
        )
    ]
    assert reported(reads(story, make_progress(step=12, checkpoint_failures=1))) == []
    story = reads(story, make_progress(step=30, checkpoint_failures=3, checkpoint_step=25))
    assert "2 checkpoints could not be written" in reported(story)[0][2]
    assert "the newest checkpoint is of step 25" in reported(story)[0][2]


def test_the_last_checkpoint_failure_is_reported_from_the_termination_message() -> None:
    story = reads(training(), make_progress(step=90, checkpoint_failures=1, checkpoint_step=80))
    final = Progress(step=100, checkpoint_failures=2, checkpoint_step=80)
    story.events.clear()
    story.see(
        make_worker(0, state="Succeeded", termination_message=termination_message(rank=0, progress=final)),
        make_worker(1, state="Succeeded"),
    ).settle()
    [(_, reason, message)] = reported(story)
    assert reason == "CheckpointFailed"
    assert "a checkpoint could not be written" in message
