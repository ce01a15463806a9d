"""What a running pod tells Prometheus, and what it writes to its log."""

import io
import json
import logging
import math
import socket
import sys
import urllib.request
from dataclasses import replace
from datetime import datetime

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.trainer.pods import Pod, Starter, finish, make_config, wait_until
from trainyard import contract
from trainyard.status import Progress
from trainyard_operator.core.progress import parse_progress
from trainyard_trainer import log
from trainyard_trainer.metrics import Metrics
from trainyard_trainer.report import StepReport

FIGURES = {"step": 4, "total_steps": 10, "learning_rate": 0.1, "grad_norm": 1.0, "loss": 2.5}
SPEED = {"tokens_per_second": 80.04, "samples_per_second": 5.0, "seconds": 2.0, "steps": 4}


def make_report(**changes: float) -> StepReport:
    return StepReport(**{**FIGURES, **SPEED, **changes})  # type: ignore[arg-type]


def scrape(pod: Pod) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{pod.metrics_port}/metrics", timeout=5) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    labels = {"namespace": "default", "job_name": "tests", **labels}
    samples = [s for family in families.values() for s in family.samples if s.name == name and s.labels == labels]
    assert len(samples) == 1, (name, samples)
    return float(samples[0].value)


def test_metrics_are_right_while_the_run_goes_on(start: Starter) -> None:
    pods = start(make_config(2, stop={"steps": 9}, logEverySteps=2), 2, entry="tests.trainer.faults:wait_in_rank_0")
    pods[0].wait_for_step(4)
    wait_until(lambda: value(scrape(pods[0]), contract.METRIC_STEP) == 5, 10)
    leader, follower = scrape(pods[0]), scrape(pods[1])
    report = pods[0].reports[-1]
    assert report["step"] == 4
    assert value(leader, contract.METRIC_TOTAL_STEPS) == 9
    assert value(leader, contract.METRIC_SAMPLES) == 5 * 8
    assert value(leader, contract.METRIC_TOKENS) == 5 * 8 * 16
    assert value(leader, contract.METRIC_LOSS) == report["loss"]
    assert value(leader, contract.METRIC_LEARNING_RATE) == report["learningRate"]
    assert value(leader, contract.METRIC_GRAD_NORM) == report["gradNorm"]
    assert value(leader, contract.METRIC_TOKENS_PER_SECOND) == pytest.approx(report["tokensPerSecond"], abs=0.1)
    assert value(leader, contract.METRIC_SAMPLES_PER_SECOND) == pytest.approx(report["samplesPerSecond"], abs=0.1)
    for phase in ("data", "compute"):
        assert value(leader, f"{contract.METRIC_STEP_DURATION}_count", phase=phase) == 5
        assert value(leader, f"{contract.METRIC_STEP_DURATION}_sum", phase=phase) > 0
    reported_at = datetime.fromisoformat(report["time"]).timestamp()
    assert value(leader, contract.METRIC_LAST_STEP) == pytest.approx(reported_at, abs=5)
    assert value(follower, contract.METRIC_LAST_STEP) == pytest.approx(reported_at, abs=5)
    # What belongs to the whole job is told by one pod only.
    assert {name for name in follower if name.startswith("trainyard_")} == {contract.METRIC_LAST_STEP}
    (pods[0].folder / "go").touch()
    assert finish(pods) == [0, 0]


def test_metrics_are_served_before_the_group_forms_and_without_figures_yet(start: Starter) -> None:
    pods = start(make_config(2), 2, entry="tests.trainer.faults:second_pod_joins_late")
    wait_until(lambda: _answers(pods[0]), 10)
    families = scrape(pods[0])
    assert value(families, contract.METRIC_STEP) == 0
    assert contract.METRIC_LOSS not in families
    assert contract.METRIC_LAST_STEP not in families or not families[contract.METRIC_LAST_STEP].samples
    assert finish(pods) == [0, 0]


def _answers(pod: Pod) -> bool:
    try:
        return bool(scrape(pod))
    except OSError:
        return False


def test_port_in_use_is_a_warning(start: Starter) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (pod,) = start(make_config(1), env={contract.ENV_METRICS_PORT: port})
        assert pod.wait(60) == 0
    lines = [json.loads(line) for line in pod.stdout.splitlines()]
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    assert warnings == [
        f"metrics are not served: port {port}: Address already in use; set TRAINYARD_METRICS_PORT to a free port, "
        "or to 0"
    ]


def test_json_lines_say_who_and_what(start: Starter) -> None:
    (pod,) = start(make_config(2), 1, 2)
    assert pod.wait(60) == 0
    first, *steps = [json.loads(line) for line in pod.stdout.splitlines()]
    assert (
        first | {"time": ""}
        == {
            "time": "",
            "level": "info",
            "message": first["message"],
            "job": "tests",
            "attempt": 3,
            "rank": 0,
            "parameters": 34_976,
            "samples": first["samples"],
            "heldOut": 0,
            "worldSize": 2,
            "device": "cpu",
            "threads": 1,
        }
        or first["parameters"] > 0
    )
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    expected = {"time", "level", "message", "job", "attempt", "rank", "step", "totalSteps", "loss", "learningRate"}
    expected |= {"gradNorm", "tokensPerSecond", "samplesPerSecond", "etaSeconds", "seconds"}
    assert all(set(line) == expected for line in steps)
    assert [line["seconds"] for line in steps] == sorted(line["seconds"] for line in steps)


def test_report_in_the_words_of_the_status() -> None:
    assert make_report().progress(2).to_dict() == {
        "attempt": 2,
        "step": 4,
        "totalSteps": 10,
        "loss": 2.5,
        "learningRate": 0.1,
        "gradNorm": 1.0,
        "tokensPerSecond": 80.0,
        "samplesPerSecond": 5.0,
        "etaSeconds": 3.0,
    }


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_figure_that_is_not_finite_is_left_out(loss: float) -> None:
    assert "loss" not in make_report(loss=loss).progress(0).to_dict()


def test_no_server_without_a_port() -> None:
    metrics = Metrics(make_config(1), rank=0, attempt=1)
    metrics.serve(0)


def test_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    try:
        log.configure("tests", 1, 0)
        log.info(str(make_report()), step=4)
        log.configure("tests", 1, 7)
        log.info("only rank 0 says this")
        log.logger.warning("every rank says this")
    finally:
        log.logger.handlers = []
        log.logger.setLevel(logging.NOTSET)
    lines = terminal.getvalue().splitlines()
    assert lines[0].endswith("0 INFO step 4/10  loss 2.5000  lr 1.00e-01  norm 1.000  80 tokens/s  2.0 s")
    assert lines[1].endswith("7 WARNING every rank says this")
    assert len(lines) == 2


def read_by_the_operator(metrics: Metrics) -> Progress:
    progress = parse_progress(generate_latest(metrics.registry).decode(), attempt=0, now=datetime.now())
    assert progress is not None
    return progress


def test_the_operator_reads_bad_steps_off_the_page() -> None:
    metrics = Metrics(make_config(2), 0, 2)
    for _ in range(20):
        metrics.step()
    quiet = read_by_the_operator(metrics)
    assert (quiet.skipped_steps, quiet.last_skipped_step, quiet.rollbacks) == (None, None, None)
    metrics.skipped(19, math.nan)
    metrics.skipped(20, 1e6)
    metrics.rolled_back(15)
    metrics.step()
    found = read_by_the_operator(metrics)
    assert (found.attempt, found.step, found.skipped_steps, found.last_skipped_step, found.rollbacks) == (
        2,
        16,
        2,
        20,
        1,
    )
    page = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert value(families, contract.METRIC_NON_FINITE) == 1, "the other one is a spike"


def test_the_operator_reads_the_slowest_rank_off_the_page_while_it_is_slow() -> None:
    metrics = Metrics(make_config(4), 0, 2)
    compute = [0.002, 0.005, 0.002, 0.008]
    metrics.report(replace(make_report(), compute=compute, stragglers={1: 2.5, 3: 4.0}))
    found = read_by_the_operator(metrics)
    assert (found.straggler_rank, found.straggler_ratio) == (3, 4.0)
    page = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert [value(families, contract.METRIC_RANK_COMPUTE, rank=str(rank)) for rank in range(4)] == compute
    metrics.report(replace(make_report(), compute=[0.002] * 4))
    assert read_by_the_operator(metrics).straggler_rank is None
