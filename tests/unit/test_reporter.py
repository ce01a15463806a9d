"""`trainyard.reporter`: progress reports of your own training program."""

import socket
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from trainyard.protocol import constants, launcher_protocol, worker_metrics
from trainyard.protocol.progress import Progress
from trainyard.reporter import WINDOW, Reporter
from trainyard_operator.pod_input.metrics_page import parse_progress


class Program:
    """One process of a training program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.env = monkeypatch
        self.now = 0.0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.reporters: list[Reporter] = []
        self.set(
            **{
                constants.ENV_JOB: "own",
                constants.ENV_NAMESPACE: "team",
                launcher_protocol.ENV_ATTEMPT: "3",
                constants.ENV_METRICS_PORT: str(self.port),
            }
        )

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.env.setenv(name, value)

    def begin(self, total_steps: int | None = None, resumed_step: int = 0) -> Reporter:
        reporter = Reporter(total_steps, resumed_step=resumed_step, clock=lambda: self.now)
        self.reporters.append(reporter)
        return reporter

    @property
    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    @property
    def progress(self) -> Progress:
        """The progress that the operator reads from the page."""
        found = parse_progress(self.page, attempt=1, now=datetime(2030, 1, 1, tzinfo=UTC))
        assert found is not None
        return found


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    found = Program(monkeypatch)
    yield found
    for reporter in found.reporters:
        reporter.close()


def test_operator_reads_the_page_as_for_the_built_in_trainer(program: Program) -> None:
    reporter = program.begin(total_steps=100, resumed_step=10)
    for number in range(20):
        program.now += 0.5
        reporter.step(tokens=1000, samples=10, loss=3 - number / 10, learning_rate=0.1, grad_norm=2.0)
    reporter.evaluated(loss=1.5, accuracy=0.75)
    reporter.saved(30)
    assert program.progress.to_dict() == {
        "attempt": 3,
        "step": 30,
        "totalSteps": 100,
        "resumedStep": 10,
        "checkpointStep": 30,
        "loss": 1.1,
        "learningRate": 0.1,
        "gradNorm": 2.0,
        "tokensPerSecond": 2000.0,
        "samplesPerSecond": 20.0,
        "evalLoss": 1.5,
        "metrics": {"accuracy": 0.75, "loss": 1.5},
        "etaSeconds": 35.0,
        "updatedAt": "2030-01-01T00:00:00Z",
    }
    assert 'trainyard_loss{job_name="own",namespace="team"} 1.1' in program.page


def test_every_measurement_of_a_step_in_the_table_can_be_reported(program: Program) -> None:
    reporter = program.begin()
    reporter.step(mfu=0.42)
    assert program.progress.mfu == 0.42
    with pytest.raises(TypeError, match="accuracy is not a measurement of a step; use one of loss, learning_rate, "):
        reporter.step(accuracy=0.5)


def test_throughput_is_the_mean_of_the_last_30_seconds(program: Program) -> None:
    reporter = program.begin()
    for seconds in [10.0] * 10 + [1.0] * 40:
        program.now += seconds
        reporter.step(tokens=100)
    assert WINDOW == 30
    assert program.progress.tokens_per_second == 100


def test_values_that_are_not_reported_are_absent(program: Program) -> None:
    program.begin().step()
    assert set(program.progress.to_dict()) == {"attempt", "step", "updatedAt"}


def test_rank_0_reports_the_job_and_one_process_of_each_pod_serves(program: Program) -> None:
    program.set(RANK="2", LOCAL_RANK="0")
    program.begin(total_steps=10).step(tokens=5, loss=1.0)
    program.set(RANK="3", LOCAL_RANK="1")
    program.begin(total_steps=10).step(tokens=5, loss=1.0)  # it does not serve, so the port in use is no problem
    names = {line.split("{")[0] for line in program.page.splitlines() if line.startswith("trainyard_")}
    assert names == {worker_metrics.LAST_STEP_TIME.name}


def test_port_in_use_is_an_error(program: Program) -> None:
    program.begin()
    with pytest.raises(OSError, match="in use"):
        Reporter()
