"""Experiment trackers get what the log gets. TensorBoard, MLflow and W&B are the real ones, with files for servers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.layouts import Layout
from tests.trainer.pods import Pod, Starter, finish, make_config
from tests.trainer.test_metrics import make_report
from tests.trainer.test_resume import train
from trainyard_trainer.metrics import trackers
from trainyard_trainer.metrics.trackers import Trackers


def test_tensorboard_has_the_figures_of_all_attempts(start: Starter, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tensorboard": True, "evaluation": {"everySteps": 3}}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16, "evalFraction": 0.01}
    pods: list[Pod] = []
    for stop in (3, 6):
        pods += train(start, tmp_path, Layout(2, {}), stop=stop, data=data, **settings)
        assert finish(pods[-1:]) == [0], pods[-1].stderr
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    seen = {event.step: event.value for event in board.Scalars("train/loss")}
    logged = {r["step"]: r["loss"] for pod in pods for r in pod.reports if "loss" in r}
    assert seen == pytest.approx(logged, rel=1e-6)
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Scalars("eval/loss")] == [3, 6]
    assert "train/mfu" not in board.Tags()["scalars"]


def test_nothing_is_written_unless_it_is_asked_for(start: Starter, tmp_path: Path) -> None:
    (pod,) = train(start, tmp_path, Layout(1, {}))
    assert finish([pod]) == [0]
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"step-"}


def track(attempt: int, *, resumed: bool, step: int) -> None:
    found = Trackers(make_config(1), None, attempt, resumed=resumed)
    found.reported(make_report(step=step))
    found.evaluated(step, {"loss": 1.5})
    found.close()


def test_mlflow_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    track(1, resumed=False, step=4)
    track(2, resumed=True, step=8)
    track(3, resumed=False, step=1)  # another job of the same name
    runs = sorted((path.parent for path in tmp_path.glob("runs/*/*/metrics")), key=lambda run: run.stat().st_ctime)
    steps = sorted(
        [int(line.split()[2]) for line in (run / "metrics/train/loss").read_text().splitlines()] for run in runs
    )
    assert steps == [[1], [4, 8]]
    assert {(run / "params/optimizer.name").read_text() for run in runs} == {"adamw"}


def test_weights_and_biases_gets_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(1, resumed=False, step=4)
    (run,) = tmp_path.glob("wandb/offline-run-*")
    (record,) = run.glob("run-*.wandb")
    assert b"train/loss" in record.read_bytes()


def test_a_tracker_without_its_package_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    track(1, resumed=False, step=4)
    assert "MLflow gets no figures: the image has no package mlflow; add it" in caplog.text


def test_a_tracker_that_fails_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            self.writes = 0

        def write(self, step: int, figures: Any) -> None:
            self.writes += 1
            raise OSError("no route to host")

        def close(self) -> None:
            raise AssertionError

    broken = Broken()
    monkeypatch.setattr(trackers, "WeightsAndBiases", lambda *_: broken)
    monkeypatch.setenv("WANDB_API_KEY", json.dumps("a key"))
    track(1, resumed=False, step=4)
    assert broken.writes == 1
    assert "Broken gets no more figures: no route to host" in caplog.text
    assert "a key" not in caplog.text
