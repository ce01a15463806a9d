"""When a training ends: its number of steps, and the evaluations that end it earlier."""

from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard.resource.training import Stop
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.stopping import Convergence, total_steps


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
    assert total_steps(make_config(stop=stop, replace=True), samples=100, batch=8) == steps


def test_a_schedule_longer_than_the_epochs_is_refused_with_the_fix() -> None:
    config = make_config(stop={"epochs": 1}, schedule={"warmupSteps": 14}, replace=True)
    with pytest.raises(ConfigError, match=r"spec.trainer.schedule: .* 14 together, .* means 13 steps; shorten them"):
        total_steps(config, samples=100, batch=8)


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


def test_without_a_condition_no_evaluation_ends_the_training() -> None:
    assert stops_after([1.0, 1.0, 1.0, 1.0, 0.0]) == [False] * 5


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
