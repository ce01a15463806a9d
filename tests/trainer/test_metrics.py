"""The metrics page of a running pod, and its log."""

import io
import json
import logging
import math
import socket
import sys
import timeit
import urllib.request
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.run_config import make_config
from tests.trainer.pods import Pod, Starter, finish, wait_until
from trainyard import __version__
from trainyard.protocol import constants, worker_metrics
from trainyard.protocol.progress import Progress
from trainyard.sizing.model_size import flops_per_token
from trainyard_operator.pod_input.metrics_page import parse_progress
from trainyard_trainer.metrics import exporter
from trainyard_trainer.metrics.device_flops import peak_flops
from trainyard_trainer.metrics.exporter import MetricsExporter
from trainyard_trainer.metrics.observer import Start
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.metrics.stopwatch import PHASES, Stopwatch
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

VALUES = {"step": 4, "total_steps": 10, "learning_rate": 0.1, "grad_norm": 1.0, "loss": 2.5}
SPEED = {"tokens_per_second": 80.04, "samples_per_second": 5.0, "seconds": 2.0, "steps": 4}


def make_report(**changes: float) -> StepReport:
    return StepReport(**{**VALUES, **SPEED, **changes})  # type: ignore[arg-type]


def make_world(size: int = 1) -> World:
    return World(0, 0, size, 1, torch.device("cpu"))


def scrape(pod: Pod) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{pod.metrics_port}/metrics", timeout=5) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    labels = {"namespace": "default", "job_name": "tests", **labels}
    samples = [s for family in families.values() for s in family.samples if s.name == name and s.labels == labels]
    assert len(samples) == 1, (name, samples)
    return float(samples[0].value)


def lines_of(pod: Pod) -> list[dict[str, Any]]:
    """Return the log of rank 0, without the preparation of the data, which only the first run has."""
    lines = [json.loads(line) for line in pod.stdout.splitlines()]
    return [line for line in lines if not line["message"].startswith("preparing ")]


def test_page_of_a_running_job(start: Starter) -> None:
    config, peak = make_config(2, stop={"steps": 9}, logEverySteps=2), {constants.ENV_PEAK_FLOPS: "1e12"}
    pods = start(config, 2, entry="tests.trainer.faults:wait_in_rank_0", env=peak)
    pods[0].wait_for_step(4)
    wait_until(lambda: value(scrape(pods[0]), f"{worker_metrics.STEP_DURATION.name}_count", phase="other") == 5, 10)
    leader, follower = scrape(pods[0]), scrape(pods[1])
    report = pods[0].reports[-1]
    assert report["step"] == 4
    assert value(leader, worker_metrics.TOTAL_STEPS.name) == 9
    assert value(leader, worker_metrics.SAMPLES.name) == 5 * 8
    assert value(leader, worker_metrics.TOKENS.name) == 5 * 8 * 16
    assert value(leader, worker_metrics.LOSS.name) == report["loss"]
    assert value(leader, worker_metrics.LEARNING_RATE.name) == report["learningRate"]
    assert value(leader, worker_metrics.GRAD_NORM.name) == report["gradNorm"]
    assert value(leader, worker_metrics.TOKENS_PER_SECOND.name) == pytest.approx(report["tokensPerSecond"], abs=0.1)
    assert value(leader, worker_metrics.SAMPLES_PER_SECOND.name) == pytest.approx(report["samplesPerSecond"], abs=0.1)
    for phase in ("data", "passes", "update", "other"):
        assert value(leader, f"{worker_metrics.STEP_DURATION.name}_count", phase=phase) == 5
        assert value(leader, f"{worker_metrics.STEP_DURATION.name}_sum", phase=phase) > 0
    assert value(leader, worker_metrics.FLOPS.name) == 5 * 8 * 16 * flops_per_token(config)
    samples = lines_of(pods[0])[0]["samples"]
    assert value(leader, worker_metrics.EPOCH.name) == pytest.approx(5 * 8 / samples)
    assert value(leader, worker_metrics.MFU.name) == pytest.approx(report["mfu"], abs=1e-4)
    about = {
        "model": "llama",
        "mesh": "replicate 2",
        "device": "cpu",
        "world_size": "2",
        "version": __version__,
    }
    assert value(leader, worker_metrics.RUN_INFO.name, **about) == 1
    resident = value(leader, worker_metrics.MEMORY.name, rank="0", kind="resident")
    assert resident == pytest.approx(psutil.Process(pods[0].ranks()[0]).memory_info().rss, rel=0.3)
    reported_at = datetime.fromisoformat(report["time"]).timestamp()
    assert value(leader, worker_metrics.LAST_STEP_TIME.name) == pytest.approx(reported_at, abs=5)
    assert value(follower, worker_metrics.LAST_STEP_TIME.name) == pytest.approx(reported_at, abs=5)
    # Metrics of the whole job come from one pod only.
    of_each_pod = {worker_metrics.LAST_STEP_TIME.name, worker_metrics.MEMORY.name}
    assert {name for name in follower if name.startswith("trainyard_")} == of_each_pod
    assert value(follower, worker_metrics.MEMORY.name, rank="1", kind="resident") > 0
    (pods[0].folder / "go").touch()
    assert finish(pods) == [0, 0]


def test_page_is_served_before_the_group_forms(start: Starter) -> None:
    pods = start(make_config(2), 2, entry="tests.trainer.faults:second_pod_joins_late")
    wait_until(lambda: _answers(pods[0]), 10)
    families = scrape(pods[0])
    assert value(families, worker_metrics.STEP.name) == 0
    assert worker_metrics.LOSS.name not in families
    assert (
        worker_metrics.LAST_STEP_TIME.name not in families or not families[worker_metrics.LAST_STEP_TIME.name].samples
    )
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
        (pod,) = start(make_config(1), env={constants.ENV_METRICS_PORT: port})
        assert pod.wait(60) == 0
    lines = [json.loads(line) for line in pod.stdout.splitlines()]
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    assert warnings == [
        f"metrics are not served: port {port}: Address already in use; set TRAINYARD_METRICS_PORT to a free port, "
        "or to 0"
    ]


def test_json_lines_have_job_attempt_rank_and_measurements(start: Starter) -> None:
    config = make_config(2)
    (pod,) = start(config, 1, 2)
    assert pod.wait(60) == 0
    first, *steps = lines_of(pod)
    about = {"time": first["time"], "level": "info", "job": "tests", "attempt": 3, "rank": 0}
    parameters = config.family.parameters(config.model)
    counts = {"parameters": parameters, "trainedParameters": parameters, "samples": first["samples"], "evalSamples": 0}
    device = {"worldSize": 2, "device": "cpu", "precision": "float32", "threads": 1}
    assert first == {**about, "message": first["message"], **counts, **device}
    assert first["message"].startswith(f"{parameters:,} parameters, ")
    assert first["message"].endswith(", 2 ranks on cpu: replicate 2")
    assert first["samples"] > 1000
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    expected = {"time", "level", "message", "job", "attempt", "rank", "step", "totalSteps", "loss", "learningRate"}
    expected |= {"gradNorm", "tokensPerSecond", "samplesPerSecond", "etaSeconds", "seconds"}
    assert all(set(line) == expected for line in steps)
    assert [line["seconds"] for line in steps] == sorted(line["seconds"] for line in steps)


def test_report_as_fields_of_the_status() -> None:
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
def test_value_that_is_not_finite_is_left_out(loss: float) -> None:
    assert "loss" not in make_report(loss=loss).progress(0).to_dict()


def test_port_0_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []
    monkeypatch.setattr(exporter, "start_http_server", lambda port, address, registry: ports.append(port))
    metrics = MetricsExporter(make_config(1), make_world(), attempt=1)
    metrics.serve(0)
    assert ports == []
    metrics.serve(9400)
    assert ports == [9400]


def test_evaluations_have_six_digits_on_the_page_in_the_log_and_in_trackers(start: Starter, tmp_path: Path) -> None:
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16, "evalFraction": 0.001}
    config = make_config(1, data=data, evaluation={"everySteps": 3}, stop={"steps": 6})
    mlflow = {
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/runs",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    (pod,) = start(config, entry="tests.trainer.faults:wait_in_rank_0", env=mlflow)
    pod.wait_for_step(5)
    (logged,) = pod.evaluations
    families = scrape(pod)
    page = {name: value(families, worker_metrics.EVALUATION.named(name).name) for name in logged}
    (pod.folder / "go").touch()
    assert finish([pod]) == [0], pod.stderr
    (run,) = [path.parent for path in tmp_path.glob("runs/*/*/metrics")]
    tracked = {}
    for name in logged:
        rows = [line.split() for line in (run / f"metrics/eval/{name}").read_text().splitlines()]
        (tracked[name],) = [float(number) for _, number, step in rows if step == "3"]
    assert set(logged) == {"loss", "accuracy", "perplexity"}
    assert logged == {name: float(f"{number:.6g}") for name, number in logged.items()}
    assert page == logged
    assert tracked == logged


def test_the_termination_message_has_the_counts_of_the_attempt() -> None:
    metrics = MetricsExporter(make_config(1), make_world(), attempt=2)
    metrics.checkpoint_resumed(3, 1)
    metrics.begin(Start(step=3, samples_consumed=24, tokens_consumed=384, total_steps=10, batch=8, samples=1000))
    metrics.after_step(4)
    metrics.reported(make_report())
    metrics.checkpoint_failed(4)
    metrics.checkpoint_stalled(0.25)
    metrics.checkpoint_saved(4, 1.0, 1000)
    assert metrics.attempt_progress() == {
        "attempt": 2,
        "checkpoint_step": 4,
        "resumed_step": 3,
        "checkpoints_damaged": 1,
        "checkpoint_failures": 1,
        "checkpoint_stall_seconds": 0.25,
    }


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
        log.info("only rank 0 logs this")
        log.logger.warning("every rank logs this")
    finally:
        log.logger.handlers = []
        log.logger.setLevel(logging.NOTSET)
    lines = terminal.getvalue().splitlines()
    assert lines[0].endswith("0 INFO step 4/10  loss 2.5000  lr 1.00e-01  norm 1.000  80 tokens/s  2.0 s")
    assert lines[1].endswith("7 WARNING every rank logs this")
    assert len(lines) == 2


def test_log_level_of_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        monkeypatch.setenv(constants.ENV_LOG_LEVEL, "warning")
        log.configure("tests", 1, 0)
        log.info("a step")
        log.logger.warning("a warning")
        monkeypatch.setenv(constants.ENV_LOG_LEVEL, "loud")
        with pytest.raises(ConfigError, match="TRAINYARD_LOG_LEVEL: must be one of debug, info, warning, not loud"):
            log.configure("tests", 1, 0)
    finally:
        log.logger.handlers = []
        log.logger.setLevel(logging.NOTSET)
    assert [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()] == ["a warning"]


def read_by_the_operator(metrics: MetricsExporter) -> Progress:
    progress = parse_progress(generate_latest(metrics.registry).decode(), attempt=0, now=datetime.now())
    assert progress is not None
    return progress


def test_operator_reads_bad_steps_from_the_page() -> None:
    metrics = MetricsExporter(make_config(2), make_world(2), 2)
    for step in range(1, 21):
        metrics.after_step(step)
    before = read_by_the_operator(metrics)
    assert (before.skipped_steps, before.last_skipped_step, before.rollbacks) == (None, None, None)
    metrics.skipped(19, math.nan)
    metrics.skipped(20, 1e6)
    metrics.rolled_back(15)
    metrics.after_step(16)
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
    assert value(families, worker_metrics.NON_FINITE_STEPS.name) == 1, "the other one is a spike"


def test_operator_reads_the_slowest_rank_from_the_page_while_it_is_slow() -> None:
    metrics = MetricsExporter(make_config(4), make_world(4), 2)
    compute = [0.002, 0.005, 0.002, 0.008]
    metrics.reported(replace(make_report(), compute=compute, stragglers={1: 2.5, 3: 4.0}))
    found = read_by_the_operator(metrics)
    assert (found.straggler_rank, found.straggler_ratio) == (3, 4.0)
    page = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert [value(families, worker_metrics.RANK_COMPUTE.name, rank=str(rank)) for rank in range(4)] == compute
    metrics.reported(replace(make_report(), compute=[0.002] * 4))
    assert read_by_the_operator(metrics).straggler_rank is None


def test_phases_add_up_to_the_time_of_the_loop() -> None:
    now = iter([0.0, 5.0, 6.0, 6.5, 10.0])
    watch = Stopwatch(lambda: next(now))
    watch.mark("passes", waited=2.0)
    watch.mark("update")
    watch.mark("other")
    assert watch.lap() == {**dict.fromkeys(PHASES, 0.0), "data": 2.0, "passes": 3.0, "update": 1.0, "other": 0.5}
    watch.mark("checkpoint")
    assert watch.lap()["checkpoint"] == 3.5


@pytest.mark.parametrize("peak", ["much", "0", "-1e12", "inf"])
def test_invalid_peak_is_refused(peak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_PEAK_FLOPS, peak)
    with pytest.raises(ConfigError, match=f"TRAINYARD_PEAK_FLOPS: must be a positive number of FLOP/s, not {peak}"):
        peak_flops(torch.device("cpu"))


def test_peak_of_a_cpu_is_not_known() -> None:
    assert peak_flops(torch.device("cpu")) is None


def test_metrics_of_a_step_take_little_time() -> None:
    """About 10 µs on a slow CPU, which is 0.1 % of a step of 10 ms; the best of five rounds counts."""
    metrics, watch = MetricsExporter(make_config(1), make_world(), attempt=1), Stopwatch()
    metrics.begin(Start(step=0, samples_consumed=0, tokens_consumed=0, total_steps=100, batch=8, samples=1000))

    def step() -> None:
        for phase in PHASES:
            watch.mark(phase)
        metrics.after_step(1)
        metrics.spent(watch.lap())

    assert min(timeit.repeat(step, number=1000, repeat=5)) / 1000 < 50e-6


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA RTX A6000", 155e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA Z1", None),
    ],
)
def test_device_name_is_matched_word_by_word(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
