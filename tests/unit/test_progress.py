"""Progress: the table of metrics, and what the status shows of a page."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.builders import NOW
from trainyard.protocol.progress import Progress
from trainyard.protocol.worker_metrics import METRICS, WorkerMetric
from trainyard_operator.pod_input.metrics_page import parse_progress, significant

PAGE = """\
# HELP trainyard_steps_total Optimizer steps done
# TYPE trainyard_steps_total counter
trainyard_steps_total{job_name="job",namespace="default"} 50.0
trainyard_planned_steps{job_name="job",namespace="default"} 200.0
trainyard_tokens_total{job_name="job",namespace="default"} 5000.0
trainyard_loss{job_name="job",namespace="default"} 2.3456789012
trainyard_learning_rate{job_name="job",namespace="default"} 0.0003
trainyard_grad_norm{job_name="job",namespace="default"} 1.5
trainyard_tokens_per_second{job_name="job",namespace="default"} 1000.0
trainyard_samples_per_second{job_name="job",namespace="default"} 4.0
process_cpu_seconds_total 3.0
"""


def test_progress_has_the_fields_of_the_table_and_three_derived_ones() -> None:
    fields = {name for metric in METRICS for name in (metric.field, metric.rank_field) if name}
    assert set(Progress.model_fields) == fields | {"eval_loss", "eta_seconds", "updated_at"}


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.field], ids=lambda metric: metric.name)
def test_field_has_type_and_description_of_its_metric(metric: WorkerMetric) -> None:
    assert metric.field is not None
    field = Progress.model_fields[metric.field]
    accepted = {"map": {"loss": 0.5}, "integer": 3, "number": 0.5}
    kind = "map" if metric.open_ended else "integer" if metric.integer else "number"
    assert Progress.model_validate({metric.field: accepted[kind]}).to_dict()
    if kind == "integer":
        with pytest.raises(ValidationError):
            Progress.model_validate({metric.field: 0.5})
    assert field.description == metric.help


def test_metric_names_are_unique_and_follow_prometheus_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("trainyard_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name


def test_page_as_fields_of_the_status() -> None:
    progress = parse_progress(PAGE, attempt=3, now=NOW)
    assert progress is not None
    assert progress.to_dict() == {
        "attempt": 3,
        "step": 50,
        "totalSteps": 200,
        "loss": 2.34568,
        "learningRate": 0.0003,
        "gradNorm": 1.5,
        "tokensPerSecond": 1000.0,
        "samplesPerSecond": 4.0,
        "etaSeconds": 15.0,  # 150 steps of 100 tokens each, at 1,000 tokens per second
        "updatedAt": "2030-01-01T12:00:00Z",
    }


def test_evaluation_metrics_are_read_by_name() -> None:
    page = PAGE + "trainyard_eval_loss 0.25\ntrainyard_eval_accuracy 0.98328712\ntrainyard_eval_f1 NaN\n"
    progress = parse_progress(page, attempt=1, now=NOW)
    assert progress is not None
    assert progress.eval_loss == 0.25
    assert progress.metrics == {"accuracy": 0.983287, "loss": 0.25}


@pytest.mark.parametrize(
    "page", ["", "up 1\n", "trainyard_loss 1\n", "trainyard_steps_total NaN\n", "trainyard_steps_total +Inf\n"]
)
def test_page_without_a_step_count_has_no_progress(page: str) -> None:
    assert parse_progress(page, attempt=1, now=NOW) is None


def test_page_before_the_first_step_has_step_0() -> None:
    page = "trainyard_steps_total 0\ntrainyard_planned_steps 10\ntrainyard_tokens_per_second 5\n"
    progress = parse_progress(page, attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.total_steps, progress.eta_seconds, progress.steps_made) == (0, 10, None, 0)


def test_steps_before_the_resumed_checkpoint_are_not_made_by_the_attempt() -> None:
    progress = parse_progress(PAGE + "trainyard_resumed_step 48\n", attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.resumed_step, progress.steps_made) == (50, 48, 2)


def test_problems_with_checkpoints_are_omitted_while_0() -> None:
    for count, expected in ((0, None), (2, 2)):
        page = PAGE + f"trainyard_checkpoints_damaged {count}\ntrainyard_checkpoint_failures_total {count}\n"
        progress = parse_progress(page, attempt=1, now=NOW)
        assert progress is not None
        assert (progress.checkpoints_damaged, progress.checkpoint_failures) == (expected, expected)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_value_that_is_not_finite_is_left_out(value: str) -> None:
    page = (
        f"trainyard_steps_total 5\ntrainyard_loss {value}\ntrainyard_tokens_per_second {value}\ntrainyard_grad_norm 2\n"
    )
    progress = parse_progress(page + "trainyard_planned_steps 10\n", attempt=1, now=NOW)
    assert progress is not None
    assert (progress.step, progress.loss, progress.tokens_per_second, progress.grad_norm) == (5, None, None, 2.0)


def test_eta_is_0_after_the_planned_steps() -> None:
    progress = parse_progress(PAGE.replace("} 200.0", "} 40.0"), attempt=1, now=NOW)
    assert progress is not None
    assert progress.eta_seconds == 0


@given(st.floats(-1e307, 1e307).filter(lambda v: abs(v) > 1e-300), st.integers(1, 15))
def test_rounding_to_significant_digits(value: float, digits: int) -> None:
    rounded = significant(value, digits)
    assert math.isclose(rounded, value, rel_tol=10.0 ** (1 - digits))
    assert significant(rounded, digits) == rounded
