"""A slow rank is found by its own computation; a single slow moment does not count."""

import pytest
import torch

from tests.support.run_config import make_config
from tests.trainer.pods import Starter
from trainyard.resource.health import Straggler
from trainyard_trainer.metrics.stragglers import EVERY, ROUNDS, ComputeProbe, Stragglers

CPU = torch.device("cpu")
FAULT = "tests.trainer.faults:slow_last_rank"


def make(size: int = 4, factor: float = 1.5) -> Stragglers:
    return Stragglers(Straggler(factor=factor), 0, size, CPU)


@pytest.mark.parametrize("parallelism", [{}, {"tensor": 2}, {"pipeline": {"stages": 2, "schedule": "1F1B"}}], ids=str)
def test_slow_rank_is_reported_and_losses_are_unchanged(start: Starter, parallelism: dict[str, object]) -> None:
    config = make_config(2, parallelism, stop={"steps": 60})
    (plain,) = start(config, 1, 2)
    watched = config.replace(health=config.health.replace(straggler=Straggler(factor=2)))
    (slow,) = start(watched, 1, 2, FAULT)
    assert [plain.wait(90), slow.wait(90)] == [0, 0], slow.stderr
    found = {report.get("stragglerRank") for report in slow.reports}
    assert found == {None, 1}, "none at first"
    assert slow.reports[-1]["stragglerRatio"] > 2
    assert [r["loss"] for r in slow.reports] == [r["loss"] for r in plain.reports]


def test_no_straggler_without_a_slow_rank(start: Starter) -> None:
    config = make_config(2, stop={"steps": 60})
    watched = config.replace(health=config.health.replace(straggler=Straggler(factor=20)))
    (pod,) = start(watched, 1, 2)
    assert pod.wait(90) == 0, pod.stderr
    assert not any("stragglerRank" in report for report in pod.reports)


def test_rank_is_a_straggler_after_several_comparisons_and_only_while_it_is_slow() -> None:
    found = make()
    slow, fast = [0.01, 0.01, 0.02, 0.01], [0.01] * 4
    rounds = [found.find(slow, now=(1 + turn) * EVERY) for turn in range(ROUNDS)]
    assert rounds == [{}] * (ROUNDS - 1) + [{2: 2.0}]
    assert found.find(fast, now=(1 + ROUNDS) * EVERY) == {}
    assert found.find(slow, now=(2 + ROUNDS) * EVERY) == {}, "the count starts again"


def test_comparing_more_often_finds_no_straggler_sooner() -> None:
    found = make()
    assert [found.find([0.01, 0.01, 0.02, 0.01], now=EVERY + call / 100) for call in range(50)] == [{}] * 50


def test_faster_one_of_two_ranks_is_the_reference() -> None:
    found = make(size=2)
    assert [found.find([0.02, 0.01], now=(1 + turn) * EVERY) for turn in range(ROUNDS)][-1] == {0: 2.0}


def test_no_straggler_before_all_ranks_are_measured() -> None:
    found = make(size=2)
    assert [found.find([0.02, 0.0], now=(1 + turn) * EVERY) for turn in range(ROUNDS)][-1] == {}


@pytest.mark.parametrize("off", [Stragglers(None, 0, 4, CPU), Stragglers(Straggler(), 0, 1, CPU)])
def test_nothing_is_measured_if_disabled_or_with_one_rank(off: Stragglers) -> None:
    off.after_step()
    assert off.pack(torch.tensor(2.5)).tolist() == [2.5]
    assert off.find([], now=100.0) == {}


def test_probe_measures_only_when_due() -> None:
    probe = ComputeProbe(CPU)
    assert probe.seconds == 0.0
    for _ in range(3):
        probe.after_step()
    assert 0 < probe.seconds < 1
    assert len(probe._times) == 1
