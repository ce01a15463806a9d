"""A metric added to the table reaches the metrics page, the operator, the status, the log and the trackers."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tests.builders import NOW
from tests.support.run_config import make_config
from tests.trainer.test_metrics import SPEED, VALUES, make_world
from tests.trainer.test_trackers import read_tensorboard
from trainyard.protocol import worker_metrics
from trainyard.protocol.progress import Measurement, Progress
from trainyard.protocol.worker_metrics import WorkerMetric
from trainyard_operator.pod_input import metrics_page as operator_progress
from trainyard_trainer.metrics import step_report
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.metrics.trackers import Trackers

WEIGHT_NORM = WorkerMetric(
    "trainyard_weight_norm",
    "gauge",
    "Norm of the weights.",
    "weight_norm",
    decimals=2,
    tracker_name="train/weight_norm",
)
RESCUES = WorkerMetric("trainyard_rescues_total", "counter", "Rescues.", "rescues", integer=True, omit_zero=True)


class ExtendedProgress(Progress):
    """The status with a field for each of the two."""

    weight_norm: Measurement = None
    rescues: int | None = None


@dataclass(frozen=True)
class ExtendedReport(StepReport):
    """The code that measures one of them."""

    weight_norm: float = 12.3456789


@pytest.fixture(autouse=True)
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_metrics, "METRICS", (*worker_metrics.METRICS, WEIGHT_NORM, RESCUES))
    for module in (step_report, operator_progress):
        monkeypatch.setattr(module, "Progress", ExtendedProgress)


def read_by_the_operator(exporter: MetricsExporter) -> dict[str, object]:
    page = generate_latest(exporter.registry).decode()
    assert "# HELP trainyard_weight_norm Norm of the weights." in page
    progress = operator_progress.parse_progress(page, attempt=1, now=NOW)
    assert progress is not None
    return progress.to_dict()


def test_a_new_metric_reaches_page_operator_status_log_and_tracker(tmp_path: Path) -> None:
    report = ExtendedReport(**{**VALUES, **SPEED})  # type: ignore[arg-type]
    exporter = MetricsExporter(make_config(1), make_world(), attempt=1)
    config = make_config(1)
    tracked = config.replace(trainer=config.trainer.replace(tensorboard=True))
    trackers = Trackers(tracked, tmp_path, "a")
    for observer in (exporter, trackers):
        observer.after_step(4)
        observer.reported(report)
    trackers.close()

    status = read_by_the_operator(exporter)
    assert status["weightNorm"] == 12.3457, "six digits"
    assert "rescues" not in status, "0, and left out"
    assert report.progress(attempt=1).to_dict()["weightNorm"] == 12.35, "of the log: two decimals"
    assert [event.value for event in read_tensorboard(tmp_path).Scalars("train/weight_norm")] == pytest.approx(
        [12.3456789], rel=1e-6
    )


def test_a_new_counter_reaches_status_and_termination_message() -> None:
    exporter = MetricsExporter(make_config(1), make_world(), attempt=1)
    exporter.after_step(4)
    exporter.reported(ExtendedReport(**{**VALUES, **SPEED}))  # type: ignore[arg-type]
    exporter.page.add(RESCUES, 2)
    assert read_by_the_operator(exporter)["rescues"] == 2
    assert exporter.attempt_progress()["rescues"] == 2
