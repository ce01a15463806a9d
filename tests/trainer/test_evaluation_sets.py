"""An evaluation of a limited number of samples: the same ones in each evaluation and on every layout."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_config import DIGITS, make_config
from tests.trainer.layouts import FSDP, Layout, References, assert_same, pipe, record
from tests.trainer.pods import Pod, Starter, finish
from trainyard.protocol import constants
from trainyard_trainer.data.evaluation_sets import EvaluationSet, evaluation_sets, sample_count
from trainyard_trainer.data.samples import Subset
from trainyard_trainer.data.table import Table, load_table
from trainyard_trainer.evaluation.folder import DataChoice, evaluate_folder, open_folder

LIMIT = 50


def sources(*sizes: int) -> list[Subset]:
    """Return sources with so many held-out samples, behind ten samples each to train on."""
    subsets, first = [], 0
    for index, size in enumerate(sizes):
        subsets.append(Subset(str(index), 1.0, range(first, first + 10), range(first + 10, first + 10 + size)))
        first += 10 + size
    return subsets


def numbers_of(sets: tuple[EvaluationSet, ...]) -> list[list[int]]:
    return [[int(number) for number in each.numbers] for each in sets]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 200))
def test_a_limit_takes_its_part_of_each_source(sizes: list[int], limit: int) -> None:
    subsets = sources(*sizes)
    everything = numbers_of(evaluation_sets(subsets))
    chosen = numbers_of(evaluation_sets(subsets, limit))
    total, found = sum(map(len, everything)), sum(map(len, chosen))
    # Without held-out samples, those to train on stand for them.
    assert total == (sum(sizes) or 10 * len(sizes))
    assert found == min(total, max(limit, len(everything)))
    for all_of_source, of_source in zip(everything, chosen, strict=True):
        assert len(of_source) >= 1
        assert sorted(set(of_source)) == of_source
        assert set(of_source) <= set(all_of_source)
        # One sample of each is certain, and the others are in proportion.
        assert len(of_source) == pytest.approx(found * len(all_of_source) / total, abs=2)


def test_a_larger_limit_adds_samples() -> None:
    subsets = sources(500)
    (small,), (large,) = (numbers_of(evaluation_sets(subsets, limit)) for limit in (20, 90))
    assert set(small) < set(large)
    # They come from everywhere in the source: in no fifth of it are few of them.
    assert min(np.histogram(large, bins=5, range=(10, 510))[0]) >= 9


def test_the_selection_never_changes() -> None:
    """Evaluations before and after an update of Trainyard are compared."""
    assert numbers_of(evaluation_sets(sources(1000, 30), 8)) == SELECTED


SELECTED = [[172, 290, 363, 433, 611, 696, 949], [1043]]


def train_digits(start: Starter, folder: Path, layout: Layout) -> Pod:
    spec = {**DIGITS, "evaluation": {"everySteps": 20, "maxSamples": LIMIT, "report": True}}
    config = make_config(layout.processes, layout.parallelism, replace=True, checkpoint={}, **spec)
    (pod,) = start(config, 1, layout.processes, env={constants.ENV_CHECKPOINTS: str(folder)})
    assert finish([pod]) == [0], pod.stderr
    return pod


def test_the_mean_is_that_of_an_evaluation_of_data_with_these_samples_only(start: Starter, tmp_path: Path) -> None:
    pods = [
        train_digits(start, tmp_path / str(layout), layout) for layout in (Layout(1, {}), Layout(2, {"data": FSDP}))
    ]
    first, second = (pod.evaluations for pod in pods)
    assert len(first) == 3
    for found, expected in zip(second, first, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    # The same samples as a table of their own, all of which is evaluated.
    table = load_table(make_config(replace=True, **DIGITS))
    (evaluated,) = evaluation_sets(table.subsets, LIMIT)
    write_rows(table, evaluated, tmp_path / "part.npz")
    folder = tmp_path / str(Layout(1, {}))
    alone = open_folder(folder, DataChoice(path=tmp_path / "part.npz"))
    assert sample_count(alone.evaluated) == LIMIT
    assert evaluate_folder(alone).metrics() == pytest.approx(first[-1], rel=1e-5)
    # The command with the same limit, and the evaluation of all held-out samples, which is another one.
    limited, whole = (open_folder(folder, DataChoice(), limit) for limit in (LIMIT, None))
    assert evaluate_folder(limited).metrics() == pytest.approx(first[-1], rel=1e-5)
    assert limited.subject().samples == "50 of 359 samples that were held out from the training"
    assert evaluate_folder(whole).metrics()["loss"] != pytest.approx(first[-1]["loss"], rel=1e-2)
    (report,) = folder.glob("reports/*/evaluation.json")
    assert "50 of 359 samples that were held out from the training" in report.read_text()


def write_rows(table: Table, evaluated: EvaluationSet, path: Path) -> None:
    """Write samples as a table as it was before its columns were scaled."""
    mean, deviation, _ = table.trained_on
    chosen = np.asarray(evaluated.numbers)
    scale = np.where(deviation > 0, deviation, 1)
    np.savez(path, x=np.rint(table.features[chosen] * scale + mean), y=table.classes[chosen])


@pytest.mark.parametrize(
    "layout",
    [Layout(4, {"context": 2, "tensor": 2}), Layout(4, {"pipeline": pipe(2), "data": FSDP})],
    ids=str,
)
def test_every_layout_evaluates_the_same_samples(start: Starter, references: References, layout: Layout) -> None:
    limited = {"evaluation": {"maxSamples": 11}, "data": {"evalFraction": 0.001}}
    assert_same(record(start, layout, **limited), references(layout, "limited", **limited))
