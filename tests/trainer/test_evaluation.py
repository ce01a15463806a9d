"""Evaluation: metrics equal those of scikit-learn, on any number of ranks, on samples that are not trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import calibration_curve
from torch import Tensor

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.evaluation_sets import EvaluationSet
from trainyard_trainer.data.samples import IGNORED, Batch
from trainyard_trainer.data.table import load_table
from trainyard_trainer.evaluation.scores import BINS, Scores
from trainyard_trainer.evaluation.scoring import score
from trainyard_trainer.parallel.predictions import Predictions, predict
from trainyard_trainer.plugin import Plugin
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

ALONE = World(0, 0, 1, 1, torch.device("cpu"))
DIGITS = {"model": {"name": "mlp"}, "data": {"source": "table", "builtin": "digits", "evalFraction": 0.2}}
RECIPE = {
    "batch": {"global": 32},
    "optimizer": {"name": "adam", "learningRate": 0.001},
    "schedule": {"name": "constant"},
    "stop": {"epochs": 10},
    "logEverySteps": 100,
}


def digits(world_size: int = 1, **changes: Any) -> Any:
    spec = {**RECIPE, **DIGITS, **changes}
    return make_config(world_size, spec.pop("parallelism", None), replace=True, **spec)


class GivenPredictions:
    """Passes and batches whose predictions are given."""

    evaluated = (EvaluationSet("data", range(100)),)

    def __init__(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        self.batches = batches

    def eval_batches(self, evaluated: EvaluationSet) -> Iterator[Batch]:
        return (Batch(predicted, targets) for predicted, targets, _ in self.batches)

    def evaluate(self, batch: Batch) -> tuple[Tensor, Predictions]:
        loss = next(loss for _, t, loss in self.batches if t is batch.targets)
        return loss, Predictions(batch.inputs, torch.full(batch.inputs.shape, 0.9))


def test_metrics_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(3)
    actual = generator.integers(0, 5, 100)
    predicted = np.where(generator.random(100) < 0.7, actual, generator.integers(0, 5, 100))
    parts = np.split(np.arange(100), [40, 90])
    batches = [
        (torch.from_numpy(predicted[p]), torch.from_numpy(actual[p]), torch.tensor(float(len(p)))) for p in parts
    ]
    padding = torch.full((3,), IGNORED)
    batches.append((torch.zeros(3, dtype=torch.int64), padding, torch.tensor(0.0)))
    given = cast(Any, GivenPredictions(batches))
    metrics_found = score(given, given, ALONE, classes=6, counts=True).metrics()
    mean = {"average": "macro", "zero_division": 0.0}
    assert metrics_found == pytest.approx(
        {
            "loss": 1.0,
            "accuracy": metrics.accuracy_score(actual, predicted),
            "precision": metrics.precision_score(actual, predicted, **mean),
            "recall": metrics.recall_score(actual, predicted, **mean),
            "f1": metrics.f1_score(actual, predicted, **mean),
        }
    )


def scores_of(actual: Tensor, logits: Tensor, classes: int) -> Scores:
    scores = Scores(["data"], classes, Plugin(), ALONE.device)
    for part in torch.split(torch.arange(len(actual)), 30):
        counted = torch.ones(len(part), dtype=torch.bool)
        scores.add(0, torch.tensor(0.0), predict(logits[part]), actual[part], counted)
    return scores


def test_classes_and_their_pairs_equal_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    actual = torch.randint(0, 5, (200,), generator=generator)
    logits = torch.randn(200, 7, generator=generator)  # class 5 is predicted only, and 6 never occurs
    logits[:, 6] = -100
    logits[torch.arange(200), actual] += 2
    scores, predicted = scores_of(actual, logits, 7), logits.argmax(-1)
    assert scores.pairs.tolist() == metrics.confusion_matrix(actual, predicted, labels=range(7)).tolist()
    expected = metrics.precision_recall_fscore_support(actual, predicted, labels=range(6), zero_division=0.0)
    rows = scores.class_metrics()
    for index, name in enumerate(("precision", "recall", "f1", "actual")):
        assert [row[name] for row in rows] == pytest.approx(expected[index].tolist()), name
    for average in ("macro", "weighted"):
        means = metrics.precision_recall_fscore_support(actual, predicted, average=average, zero_division=0.0)
        assert list(scores.averages()[average].values()) == pytest.approx(means[:3]), average


def test_calibration_equals_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    actual = torch.randint(0, 4, (500,), generator=generator)
    logits = 1.5 * torch.randn(500, 4, generator=generator)
    logits[torch.arange(500), actual] += 1
    found = scores_of(actual, logits, 4).calibration()
    assert found is not None
    confidence, predicted = logits.softmax(-1).max(-1)
    right = (predicted == actual).numpy()
    accuracy, mean = calibration_curve(right, confidence.numpy(), n_bins=BINS)
    assert [row["accuracy"] for row in found["bins"]] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in found["bins"]] == pytest.approx(mean.tolist())
    shares = np.histogram(confidence.numpy(), bins=BINS, range=(0, 1))[0] / 500
    assert found["error"] == pytest.approx(float((np.abs(accuracy - mean) * shares[shares > 0]).sum()))


def test_predictions_of_many_logits_are_those_of_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard_trainer.parallel.predictions.CHUNK", 64)
    logits = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(2)).bfloat16()
    found, expected = predict(logits), logits.float().softmax(-1).max(-1)
    assert torch.equal(found.classes, expected.indices)
    torch.testing.assert_close(found.confidence, expected.values)


def test_evaluation_samples_are_evaluated_once_and_never_trained_on() -> None:
    config = digits(1)
    table = load_table(config)
    batches = Batches(table, config, ALONE)
    assert (batches.eval_samples, batches.train_samples) == (359, 1438)
    evaluated = [b.inputs[b.targets != IGNORED] for b in batches.eval_batches(batches.evaluated[0])]
    assert torch.equal(torch.cat(evaluated), torch.from_numpy(table.features[1438:]))
    steps = range(2 * 1438 // 32)
    drawn = np.concatenate([batches.sampler.batch_windows(step, 0) for step in steps])
    assert drawn.max() < 1438


def test_ranks_divide_the_evaluation_samples() -> None:
    config = digits(2)
    table = load_table(config)
    ranks = [Batches(table, config, World(r, r, 2, 2, torch.device("cpu"))) for r in range(2)]
    seen = [b.inputs[b.targets != IGNORED] for r in ranks for b in r.eval_batches(r.evaluated[0])]
    assert sorted(torch.cat(seen).tolist()) == sorted(table.features[1438:].tolist())


def test_the_small_network_classifies_digits_equally_on_every_layout(start: Starter) -> None:
    layouts: tuple[tuple[int, dict[str, Any] | None], ...] = ((1, None), (2, None), (2, {"data": {"mode": "fsdp"}}))
    found = []
    for processes, parallelism in layouts:
        config = digits(processes, parallelism=parallelism)
        (pod,) = start(config, 1, processes)
        assert finish([pod]) == [0], pod.stderr
        (evaluation,) = pod.evaluations
        found.append(evaluation)
        assert pod.word is not None
        assert pod.word.progress is not None
        assert pod.word.progress.metrics == evaluation
        assert pod.word.progress.eval_loss == evaluation["loss"]
    assert found[0]["accuracy"] >= 0.95
    assert set(found[0]) == {"loss", "accuracy", "precision", "recall", "f1"}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)


def test_a_table_of_the_user(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(5, 3, (40, 3)), generator.integers(0, 4, 40)
    y[0] = 3
    np.savez(tmp_path / "table.npz", x=x, y=y)
    data = {"source": "table", "path": str(tmp_path / "table.npz")}
    table = load_table(digits(data=data))
    assert (table.count, table.width, table.class_count) == (40, 3, 4)
    np.testing.assert_allclose(table.features.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(table.features.std(0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "cannot be read"),
        ({"x": np.zeros((2, 2))}, "is not a NumPy archive with arrays x and y"),
        ({"x": np.zeros(2), "y": np.zeros(2, int)}, "x must be [samples, features]"),
        ({"x": np.full((2, 2), np.nan), "y": np.zeros(2, int)}, "finite real numbers"),
        ({"x": np.full((2, 2), np.inf, np.float16), "y": np.zeros(2, int)}, "finite real numbers"),
        ({"x": np.ones((2, 2), complex), "y": np.zeros(2, int)}, "finite real numbers"),
        (
            {"x": np.array([[0, 1e308], [0, -1e308]]), "y": np.zeros(2, int)},
            "column 1 of x has values that are too large",
        ),
        ({"x": np.zeros((2, 0)), "y": np.zeros(2, int)}, "at least one of each"),
        ({"x": np.zeros((2, 2)), "y": np.array([0, 4_000_000_000])}, "classes below 1,048,576, not 4000000000"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(2)}, "whole numbers from 0"),
    ],
)
def test_a_bad_table_is_refused_with_the_fix(tmp_path: Path, arrays: dict[str, Any] | None, message: str) -> None:
    path = tmp_path / "table.npz"
    if arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(ConfigError) as error:
        load_table(digits(data={"source": "table", "path": str(path)}))
    assert str(error.value).startswith(f"spec.trainer.data.path: {path}")
    assert message in str(error.value)


def test_a_single_array_is_no_table(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="is not a NumPy archive with arrays x and y; write it with"):
        load_table(digits(data={"source": "table", "path": str(tmp_path / "table.npy")}))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int16", "bool"])
def test_features_of_every_type_are_scaled_alike(tmp_path: Path, dtype: str) -> None:
    """The deviation of values around 1,000 is not finite in float16."""
    x = np.random.default_rng(0).integers(0, 2, (200, 3)) * (1 if dtype == "bool" else 1000)
    tables = []
    for kind in (dtype, "float64"):
        np.savez(tmp_path / f"{kind}.npz", x=x.astype(kind), y=(x[:, 0] > 0).astype(int))
        tables.append(load_table(digits(data={"source": "table", "path": str(tmp_path / f"{kind}.npz")})))
    np.testing.assert_allclose(tables[0].features, tables[1].features, rtol=1e-5)
    assert tables[0].features.std() == pytest.approx(1, rel=1e-3)


def test_many_classes_need_no_memory_for_their_pairs() -> None:
    """Of 100,000 classes, the pairs would take 80 GB."""
    actual = torch.tensor([5, 99_999, 7, 5])
    predicted = torch.tensor([5, 7, 7, 99_998])
    given = cast(Any, GivenPredictions([(predicted, actual, torch.tensor(4.0))]))
    found = score(given, given, ALONE, classes=100_000, counts=True).metrics()
    assert found["f1"] == pytest.approx(metrics.f1_score(actual, predicted, average="macro", zero_division=0.0))
    assert found["precision"] == pytest.approx(
        metrics.precision_score(actual, predicted, average="macro", zero_division=0.0)
    )
