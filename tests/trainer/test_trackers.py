"""Experiment trackers get the values of the log. TensorBoard, MLflow and W&B are real, and write to files."""

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.run_config import make_config
from tests.trainer.layouts import Layout
from tests.trainer.pods import Pod, Starter, finish, wait_until
from tests.trainer.test_metrics import make_report
from tests.trainer.test_resume import train
from trainyard_trainer.metrics import trackers as trackers_module
from trainyard_trainer.metrics.trackers import Trackers


def read_tensorboard(root: Path) -> Any:
    board = EventAccumulator(str(root / "tensorboard"))
    board.Reload()
    return board


def test_tensorboard_has_the_metrics_of_all_attempts(start: Starter, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tensorboard": True, "evaluation": {"everySteps": 3}}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16, "evalFraction": 0.01}
    pods: list[Pod] = []
    for stop in (3, 6):
        pods += train(start, tmp_path, Layout(2, {}), stop=stop, data=data, **settings)
        assert finish(pods[-1:]) == [0], pods[-1].stderr
    board = read_tensorboard(tmp_path)
    tracked = {event.step: event.value for event in board.Scalars("train/loss")}
    logged = {r["step"]: r["loss"] for pod in pods for r in pod.reports if "loss" in r}
    assert tracked == pytest.approx(logged, rel=1e-6)
    assert sorted(logged) == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Scalars("eval/loss")] == [3, 6]
    assert "train/mfu" not in board.Tags()["scalars"]


def test_no_tracker_writes_unless_enabled(start: Starter, tmp_path: Path) -> None:
    (pod,) = train(start, tmp_path, Layout(1, {}))
    assert finish([pod]) == [0]
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"step-", "run.j"}


def track(run: str, step: int, **changes: Any) -> None:
    trackers = Trackers(make_config(1, **changes), None, run)
    trackers.reported(make_report(step=step))
    trackers.evaluated(step, {"loss": 1.5})
    trackers.close()


def test_mlflow_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/runs")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    track("a", step=4)
    track("a", step=8)
    track("b", step=1)  # another job of the same name
    runs = sorted((path.parent for path in tmp_path.glob("runs/*/*/metrics")), key=lambda run: run.stat().st_ctime)
    steps = sorted(
        [int(line.split()[2]) for line in (run / "metrics/train/loss").read_text().splitlines()] for run in runs
    )
    assert steps == [[1], [4, 8]]
    parameters = {path.name: path.read_text() for path in (runs[0] / "params").iterdir()}
    assert parameters["trainer.optimizer.name"] == "adamw"
    assert parameters["trainer.data.builtin"] == "python-stdlib"
    assert parameters["model.dim"] == "32"
    assert (runs[0] / "tags/trainyard.job").read_text() == "default/tests"


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline run: 7 bytes of header, then blocks of 32 KiB with the log format of LevelDB."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content = file.read_bytes()
    offset = 7
    record = b""
    while offset + 7 <= len(content):
        # The tail of a block that is too short for a header is padding.
        if 32_768 - offset % 32_768 < 7:
            offset += 32_768 - offset % 32_768
        _, length, kind = struct.unpack("<IHB", content[offset : offset + 7])
        record += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a record of its own, or the last part of one
            parsed = messages.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def test_weights_and_biases_has_one_run_for_all_attempts_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for run, step in (("a", 4), ("a", 8), ("b", 1)):
        track(run, step)
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    # W&B's own process writes the files, and may still do so when its client is done.
    wait_until(lambda: all(any(r.HasField("exit") for r in wandb_records(file)) for file in files), 30)
    found = set()
    for file in files:
        records = list(wandb_records(file))
        (run,) = [record.run for record in records if record.HasField("run")]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["trainer"]["data"]["builtin"] == "python-stdlib"
        assert config["parallelism"]["data"]["mode"] == "ddp"
        history = [
            {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        logged = {name: value for row in history for name, value in row.items() if not name.startswith("_")}
        assert logged == {**make_report().tracked(), "eval/loss": 1.5}
        found.add((run.run_id, run.display_name, run.run_group, history[-1]["_step"]))
    assert found == {
        ("a", "tests", "default/tests", 4),
        ("a", "tests", "default/tests", 8),
        ("b", "tests", "default/tests", 1),
    }


def test_tracker_without_its_package_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    track("a", step=4)
    assert "MLflow gets no metrics: the image has no package mlflow; add it" in caplog.text


def test_tracker_that_fails_is_dropped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            self.writes = 0

        def write(self, step: int, metrics: Any) -> None:
            self.writes += 1
            raise OSError("no route to host")

        def close(self) -> None:
            raise AssertionError

    broken = Broken()
    monkeypatch.setattr(trackers_module, "WeightsAndBiases", lambda *_: broken)
    monkeypatch.setenv("WANDB_API_KEY", json.dumps("a key"))
    track("a", step=4)
    assert broken.writes == 1
    assert "Broken gets no more metrics: no route to host" in caplog.text
    assert "a key" not in caplog.text
