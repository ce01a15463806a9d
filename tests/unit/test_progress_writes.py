"""Progress is written when it says something: the API server and all watchers pay for each write."""

from typing import Any

import pytest

from tests.builders import make_job, make_progress, make_worker, trainer_spec
from tests.support.story import Story
from trainyard.protocol.progress import Progress
from trainyard.resource.status import Activity, Phase
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.lifecycle.progress_writes import PROGRESS_INTERVAL

POLL = 5
TOTAL = 100_000


class Quiet(Story):
    """A job on a cluster, whose writes are counted."""

    writes: int = 0

    def step(self) -> Any:
        step = plan(
            Observation(
                self.job,
                self.workers,
                self.now,
                self.progress,
                self.creation_error,
                progress_interval=PROGRESS_INTERVAL,
            )
        )
        self.writes += step.status != self.status
        self.job = self.job.replace(status=step.status)
        self.events += step.events
        return step

    def reads(self, step: int, *, seconds: float = POLL, **fields: Any) -> bool:
        """Time passes, and the page shows this step. Returns whether that was written."""
        self.later(seconds)
        known = {"attempt": self.status.attempt, "total_steps": TOTAL, "resumed_step": 0, "updated_at": self.now}
        self.progress = make_progress(step, **{**known, **fields})
        before = self.writes
        self.settle()
        return self.writes > before


def training(**spec: Any) -> Quiet:
    story = Quiet(make_job(**{"trainer": trainer_spec(), **spec}))
    story.settle()
    story.all("Running").settle()
    assert story.reads(10), "the first step"
    return story


def test_a_thousand_jobs_cause_fewer_than_forty_writes_per_second() -> None:
    story = training()
    story.writes = 0
    for number in range(1, 3600 // POLL + 1):
        story.reads(
            10 + number, loss=2.5 - number / 1000, tokens_per_second=1e5 + number, checkpoint_step=number // 120
        )
    assert story.status.progress is not None
    assert story.writes * 1000 / 3600 < 40
    assert story.writes >= 3600 / 30, "at least each 30 s"


@pytest.mark.parametrize(
    "fields",
    [
        {"step": 10 + TOTAL // 100},
        {"step": 5},
        {"checkpoint_step": 11},
        {"checkpoint_failures": 1},
        {"skipped_steps": 1, "last_skipped_step": 11},
        {"straggler_rank": 1, "straggler_ratio": 2.0},
        {"seconds": 30},
    ],
    ids=str,
)
def test_news_is_written_at_once(fields: dict[str, Any]) -> None:
    story = training()
    assert not story.reads(11, loss=2.4, learning_rate=0.1, metrics={"loss": 2.0}, eval_loss=2.0, mfu=0.4)
    assert story.reads(**{"step": 12, **fields})
    assert story.status.progress == story.progress


def test_any_other_change_takes_the_newest_progress_with_it() -> None:
    story = training()
    assert not story.reads(20)
    assert story.status.progress is not None
    assert story.status.progress.step == 10
    story.see(make_worker(0, ready=True), make_worker(1)).settle()
    assert story.status.progress.step == 20


@pytest.mark.parametrize("end", ["Failed", "Succeeded"])
def test_the_last_reading_before_the_end_is_kept(end: str) -> None:
    story = training(trainer=None, metrics={}, restartPolicy={"maxRestarts": 0})
    assert not story.reads(77)
    story.later(1).see(make_worker(0, state=end), make_worker(1, state=end)).settle()
    assert story.phase == end
    assert story.status.progress is not None
    assert story.status.progress.step == 77
    assert story.status.goodput is not None
    assert story.status.goodput.highest_step == 77


def test_a_reading_of_the_attempt_before_does_not_come_back() -> None:
    story = training()
    assert not story.reads(20)
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    assert story.status.progress == story.progress
    story.see().later(5).settle()
    story.all("Running").settle()
    assert story.reads(3, attempt=2)
    assert story.status.progress == story.progress


def test_the_end_of_a_recovery_is_written_at_once() -> None:
    story = training()
    story.reads(3000)
    story.see(make_worker(0, state="Failed"), make_worker(1)).settle()
    story.see().later(5).settle()
    story.all("Running").settle()
    story.reads(2999, resumed_step=2000)
    assert activity(story) is Activity.RECOVERY
    assert story.reads(3001, resumed_step=2000)
    assert activity(story) is Activity.PRODUCTIVE


def activity(story: Story) -> Activity | None:
    return story.status.goodput.activity if story.status.goodput else None


def test_time_alone_is_no_news() -> None:
    story = training()
    assert (story.later(10_000).step().status, story.phase) == (story.status, Phase.RUNNING)


def test_without_an_interval_each_reading_is_written() -> None:
    story = Story(make_job(trainer=trainer_spec()))
    story.settle()
    story.all("Running").settle()
    for number in range(1, 4):
        story.progress = Progress(attempt=1, step=number, total_steps=TOTAL, updated_at=story.later(1).now)
        story.settle()
        assert story.status.progress == story.progress
