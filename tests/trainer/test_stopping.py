"""When a training ends: its number of steps, and the evaluations that end it earlier."""

import math
from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard.resource.optimization import Schedule
from trainyard.resource.training import Stop
from trainyard_trainer.data.timeline import Timeline, in_samples_of
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.stopping import Convergence, check_schedule, total_steps


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 1}, 13),  # 100 samples in batches of 8
        ({"epochs": 2}, 25),
        ({"tokens": 128}, 1),  # 8 samples of 16 tokens
        ({"tokens": 129}, 2),
    ],
)
def test_steps_follow_from_epochs_and_tokens(stop: dict[str, int], steps: int) -> None:
    assert total_steps(Stop.model_validate(stop), 0, Timeline(batch=8, tokens_per_sample=16), epoch=100) == steps


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        ({"steps": 18}, 18),
        ({"tokens": 5120}, 18),  # 1,280 are consumed, and 3,840 remain: 7.5 steps of 512
        ({"tokens": 1280}, 10),
        ({"tokens": 128}, 10),  # more than that is consumed
        ({"epochs": 3}, 17),  # 80 of 300 samples are consumed, and 220 remain: 6.9 steps of 32
    ],
)
def test_steps_of_a_smaller_batch_count_for_what_they_consumed(stop: dict[str, int], steps: int) -> None:
    timeline = after_ten_small_steps()
    assert total_steps(Stop.model_validate(stop), 10, timeline, epoch=100) == steps


def after_ten_small_steps() -> Timeline:
    """Ten steps of 8 samples, then steps of 32, of 16 tokens each."""
    small, large = Timeline(batch=8, tokens_per_sample=16), Timeline(batch=32, tokens_per_sample=16)
    large.move(10, 80, 1280, small.phases)
    return large


@pytest.mark.parametrize(
    ("schedule", "words"),
    [({"warmupSteps": 14}, "14 together, .* means 13 steps"), ({"warmupTokens": 1700}, "1700 .* means 1664 tokens")],
)
def test_a_schedule_longer_than_the_epochs_is_refused_with_the_fix(schedule: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=f"spec.trainer.schedule: .*{words}; shorten them"):
        check_schedule(Schedule.model_validate(schedule), 13, 1664)


# --- what steps consume -----------------------------------------------------------------------------------------------


def test_a_timeline_knows_what_each_step_has_consumed_through_every_change() -> None:
    timeline = after_ten_small_steps()
    assert [timeline.tokens_at(step) for step in (0, 1, 10, 11)] == [0, 128, 1280, 1280 + 512]
    longer = Timeline(batch=32, tokens_per_sample=40)
    samples = in_samples_of(40, timeline.samples_at(12), 16)
    assert samples == 58, "144 samples of 16 tokens are 57.6 of 40"
    longer.move(12, samples, timeline.tokens_at(12), timeline.phases)
    assert [longer.tokens_at(step) for step in (1, 11, 12, 13)] == [128, 1792, 2304, 2304 + 1280]
    assert longer.samples_at(13) == 58 + 32


def test_a_rollback_forgets_steps_but_not_what_they_consumed() -> None:
    timeline = Timeline(batch=8, tokens_per_sample=16)
    timeline.move(4, 56, 896, timeline.phases)
    assert [timeline.tokens_at(step) for step in (3, 4, 5)] == [384, 896, 1024]
    assert total_steps(Stop(tokens=1024), 4, timeline, epoch=1000) == 5


def test_a_resumed_run_without_changes_begins_no_phase() -> None:
    timeline, resumed = Timeline(batch=8, tokens_per_sample=16), Timeline(batch=8, tokens_per_sample=16)
    resumed.move(5, 40, 640, timeline.phases)
    assert resumed.phases == timeline.phases


# --- evaluations ------------------------------------------------------------------------------------------------------


def stops_after(losses: list[float], **stop: Any) -> list[bool]:
    convergence = Convergence(Stop.model_validate({"steps": 1, **stop}))
    return [convergence.reason_to_stop(loss) is not None for loss in losses]


def test_a_target_is_reached_by_that_loss_or_a_lower_one() -> None:
    assert stops_after([3.0, 2.1, 2.0, 1.0], targetLoss=2.0) == [False, False, True, True]


def test_converged_means_no_improvement_for_as_long_as_patience_lasts() -> None:
    assert stops_after([5, 4, 4.1, 3.9, 4, 4, 4], converged={"patience": 3}) == [False] * 6 + [True]


def test_a_loss_that_falls_by_less_than_the_delta_does_not_improve_however_often() -> None:
    losses = [5.0, 4.95, 4.90, 4.85, 4.4]
    assert stops_after(losses, converged={"patience": 3, "minDelta": 0.5}) == [False, False, False, True, False]


def test_a_loss_that_is_not_finite_is_no_evaluation_without_improvement() -> None:
    """A model that has diverged must not count as one that has converged."""
    losses = [math.nan, math.nan, math.inf, 5.0, math.nan, 5.0]
    assert stops_after(losses, converged={"patience": 1}) == [False] * 5 + [True]


def test_without_a_condition_no_evaluation_ends_the_training() -> None:
    assert stops_after([1.0, 1.0, 1.0, 1.0, 0.0]) == [False] * 5


def test_a_run_by_tokens_warms_up_by_tokens(start: Starter) -> None:
    """Steps of 128 tokens: a warm-up of two steps and a half, and a decay over the last two."""
    schedule = {"name": "wsd", "warmupTokens": 320, "decayTokens": 256, "minRatio": 0.5}
    config = make_config(stop={"steps": None, "tokens": 1000}, schedule=schedule, optimizer={"learningRate": 0.01})
    (pod,) = start(config)
    assert finish([pod]) == [0], pod.stderr
    rates = [report["learningRate"] for report in pod.reports]
    expected = [128 / 320, 256 / 320, 1, 1, 1, 1, 0.75, 0.5]
    assert rates == pytest.approx([0.01 * factor for factor in expected])


def test_a_run_ends_at_its_target_on_all_ranks_and_says_why(start: Starter) -> None:
    stop = {"steps": 1000, "targetLoss": 4.5}
    config = make_config(2, stop=stop, data={"evalFraction": 0.0001}, evaluation={"everySteps": 3}, logEverySteps=100)
    (pod,) = start(config, 1, 2)
    assert finish([pod]) == [0], pod.stderr
    *before, last = pod.evaluations
    assert last["loss"] <= 4.5
    assert all(evaluation["loss"] > 4.5 for evaluation in before)
    assert pod.word is not None
    assert pod.word.progress is not None
    assert pod.word.progress.step == pod.word.step == 3 * len(pod.evaluations) < 1000
    assert pod.word.message.startswith("the evaluation loss ")
    assert pod.word.message.endswith("has reached spec.trainer.stop.targetLoss 4.5")
