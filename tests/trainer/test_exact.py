"""The same global batch gives the same run, however it is split over processes and micro-batches."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import extended
from tests.trainer.pods import ENTRY, Starter, finish

Run = list[dict[str, Any]]
Runner = Callable[..., Run]


@pytest.fixture(scope="session")
def run(start: Starter) -> Runner:
    """Reports of a run with some layout."""

    def run_it(pods: int = 1, procs: int = 1, micro: int = 4, entry: str = ENTRY, **trainer: Any) -> Run:
        config = make_config(pods * procs, batch={"global": 8, "micro": micro}, **trainer)
        started = start(config, pods, procs, entry)
        assert finish(started) == [0] * pods, started[0].stderr
        return started[0].reports

    return run_it


@pytest.fixture(scope="session")
def reference(run: Runner) -> Run:
    return run(micro=8)


def differences(run: Run, reference: Run) -> float:
    """Largest relative difference of a loss or a gradient norm at any step."""
    assert [r["step"] for r in run] == [r["step"] for r in reference] == [1, 2, 3, 4, 5, 6]
    pairs: list[tuple[float, float]] = [
        (a[key], b[key]) for a, b in zip(run, reference, strict=True) for key in ("loss", "gradNorm")
    ]
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.mark.parametrize(
    ("pods", "procs", "micro"),
    [(1, 1, 2), (1, 2, 1), (2, 2, 2), *extended([(1, 1, 1), (1, 2, 4), (2, 1, 2), (1, 4, 1)])],
)
def test_layout_does_not_change_the_run(run: Runner, reference: Run, pods: int, procs: int, micro: int) -> None:
    assert differences(run(pods, procs, micro), reference) < 1e-5


@pytest.mark.parametrize("fault", ["sum_instead_of_mean", "forget_accumulation", "wrong_slice"])
def test_comparison_notices_a_fault(run: Runner, reference: Run, fault: str) -> None:
    assert differences(run(1, 2, 2, entry=f"tests.trainer.faults:{fault}"), reference) > 1e-3


def test_first_loss_is_that_of_a_uniform_guess(reference: Run) -> None:
    assert reference[0]["loss"] == pytest.approx(math.log(256), rel=0.02)


def test_seed_changes_the_run(run: Runner, reference: Run) -> None:
    assert differences(run(seed=1), reference) > 1e-3


def test_gradient_clip_bounds_the_update_not_the_reported_norm(run: Runner, reference: Run) -> None:
    free = run(optimizer={"learningRate": 0.01, "gradientClip": 0})
    assert free[0]["gradNorm"] == pytest.approx(reference[0]["gradNorm"], rel=1e-6)
    assert differences(free, reference) > 1e-3


def test_reports_are_sparse_and_end_with_the_last_step(start: Starter) -> None:
    config = make_config(2, stop={"steps": 8}, logEverySteps=3)
    (pod,) = start(config, 1, 2)
    assert pod.wait(60) == 0
    assert [r["step"] for r in pod.reports] == [1, 3, 6, 8]
    assert pod.word is not None
    assert pod.word.progress is not None
    assert pod.word.progress.loss == pod.reports[-1]["loss"]
    assert pod.word.progress.attempt == 3


def test_overfits_a_small_text(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "The quick brown fox jumps over the lazy dog; how vexingly quick daft zebras jump! " * 8
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(text)
    counts = [text.count(c) for c in set(text)]
    unigram_entropy = -sum(c / len(text) * math.log(c / len(text)) for c in counts)
    config = make_config(1, data={"path": str(path)}, stop={"steps": 150}, logEverySteps=150)
    (pod,) = start(config)
    assert pod.wait(60) == 0, pod.stderr
    assert pod.reports[-1]["loss"] < unigram_entropy / 4
