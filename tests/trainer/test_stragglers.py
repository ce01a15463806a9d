"""A slow rank is found by what it does alone, and one slow moment is none."""

import pytest
import torch

from tests.trainer.pods import Starter, make_config
from trainyard.resource.health import Straggler
from trainyard_trainer.metrics.stragglers import EVERY, ROUNDS, Pace, Stragglers

CPU = torch.device("cpu")
FAULT = "tests.trainer.faults:slow_last_rank"


def make(size: int = 4, factor: float = 1.5) -> Stragglers:
    return Stragglers(Straggler(factor=factor), 0, size, CPU)


@pytest.mark.parametrize("parallelism", [{}, {"tensor": 2}, {"pipeline": {"stages": 2, "schedule": "1F1B"}}], ids=str)
def test_the_slow_rank_is_named_and_the_losses_are_as_before(start: Starter, parallelism: dict[str, object]) -> None:
    config = make_config(2, parallelism, stop={"steps": 60})
    (plain,) = start(config, 1, 2)
    watched = config.replace(health=config.health.replace(straggler=Straggler(factor=2)))
    (slow,) = start(watched, 1, 2, FAULT)
    assert [plain.wait(90), slow.wait(90)] == [0, 0], slow.stderr
    accused = {report.get("stragglerRank") for report in slow.reports}
    assert accused == {None, 1}, "at first nobody is"
    assert slow.reports[-1]["stragglerRatio"] > 2
    assert [r["loss"] for r in slow.reports] == [r["loss"] for r in plain.reports]


def test_without_the_fault_nobody_is_accused(start: Starter) -> None:
    config = make_config(2, stop={"steps": 60})
    watched = config.replace(health=config.health.replace(straggler=Straggler(factor=20)))
    (pod,) = start(watched, 1, 2)
    assert pod.wait(90) == 0, pod.stderr
    assert not any("stragglerRank" in report for report in pod.reports)


def test_a_rank_is_accused_after_several_rounds_and_only_while_it_is_slow() -> None:
    found = make()
    slow, fast = [0.01, 0.01, 0.02, 0.01], [0.01] * 4
    rounds = [found.judge(slow, now=(1 + turn) * EVERY) for turn in range(ROUNDS)]
    assert rounds == [{}] * (ROUNDS - 1) + [{2: 2.0}]
    assert found.judge(fast, now=(1 + ROUNDS) * EVERY) == {}
    assert found.judge(slow, now=(2 + ROUNDS) * EVERY) == {}, "the count begins anew"


def test_looking_more_often_accuses_nobody_sooner() -> None:
    found = make()
    assert [found.judge([0.01, 0.01, 0.02, 0.01], now=EVERY + look / 100) for look in range(50)] == [{}] * 50


def test_of_two_ranks_the_faster_one_is_the_measure() -> None:
    found = make(size=2)
    assert [found.judge([0.02, 0.01], now=(1 + turn) * EVERY) for turn in range(ROUNDS)][-1] == {0: 2.0}


def test_nobody_is_judged_before_all_are_measured() -> None:
    found = make(size=2)
    assert [found.judge([0.02, 0.0], now=(1 + turn) * EVERY) for turn in range(ROUNDS)][-1] == {}


@pytest.mark.parametrize("off", [Stragglers(None, 0, 4, CPU), Stragglers(Straggler(), 0, 1, CPU)])
def test_where_it_is_not_wanted_or_no_use_nothing_is_measured(off: Stragglers) -> None:
    off.after_step()
    assert off.join(torch.tensor(2.5)).tolist() == [2.5]
    assert off.judge([], now=100.0) == {}


def test_pace_is_measured_now_and_then() -> None:
    pace = Pace(CPU)
    assert pace.seconds == 0.0
    for _ in range(3):
        pace.after_step()
    assert 0 < pace.seconds < 1
    assert len(pace._times) == 1
