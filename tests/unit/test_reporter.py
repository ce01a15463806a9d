"""`trainyard.reporter`: progress reports of your own training program."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainyard.protocol import constants, launcher_protocol, worker_metrics
from trainyard.protocol.launcher import Launcher
from trainyard.protocol.progress import Progress
from trainyard.protocol.termination import TerminationMessage
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


@pytest.mark.parametrize("host", ["127.0.0.1", *(["[::1]"] if socket.has_dualstack_ipv6() else [])])
def test_the_page_is_served_for_both_families(program: Program, host: str) -> None:
    program.begin()
    with urllib.request.urlopen(f"http://{host}:{program.port}/metrics", timeout=5) as answer:
        assert answer.status == 200


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


PROGRAM = """
import sys
from trainyard.reporter import Reporter
reporter = Reporter(total_steps=40)
for _ in range(40):
    reporter.step(samples=8, loss=0.25)
reporter.evaluated(loss=0.5, accuracy=0.75, ratio=float("nan"), **{{f"m{{n}}": n for n in range(40)}})
{end}
"""


def run(program: Program, message: Path, end: str = "") -> subprocess.CompletedProcess[str]:
    program.set(**{launcher_protocol.ENV_TERMINATION_LOG: str(message)})
    command = [sys.executable, "-c", PROGRAM.format(end=end)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("end", ["", "reporter.close()", "sys.exit(0)"])
def test_final_figures_are_the_termination_message_of_a_program_that_succeeds(
    program: Program, tmp_path: Path, end: str
) -> None:
    message = tmp_path / "termination-log"
    done = run(program, message, end)
    assert done.returncode == 0, done.stderr
    decoded = TerminationMessage.decode(message.read_text())
    assert decoded is not None
    assert (decoded.rank, decoded.step, decoded.exception) == (0, 40, None)
    progress = decoded.progress
    assert progress is not None
    assert (progress.attempt, progress.step, progress.total_steps, progress.loss) == (3, 40, 40, 0.25)
    assert progress.eval_loss == 0.5
    assert progress.metrics == {"loss": 0.5, "accuracy": 0.75, **{f"m{n}": n for n in range(30)}}


LOST = "RuntimeError('gloo/transport/tcp/pair.cc:561] Connection closed by peer')"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([(1, "ValueError('bad sample')")], (1, "ValueError", "bad sample", False)),
        ([(0, LOST), (1, "ValueError('bad sample')")], (1, "ValueError", "bad sample", False)),
        ([(1, "ValueError('bad sample')"), (0, LOST)], (1, "ValueError", "bad sample", False)),
        ([(1, "ValueError('bad sample')"), (2, "KeyError(1)")], (1, "ValueError", "bad sample", False)),
        # The final figures come before the exception of another rank, or after it.
        ([(0, None), (1, "ValueError('bad sample')")], (1, "ValueError", "bad sample", False)),
        ([(1, "ValueError('bad sample')"), (0, None)], (1, "ValueError", "bad sample", False)),
        # Closed while the exception is on its way.
        ([(0, "ValueError('bad sample') from reporter.close()")], (0, "ValueError", "bad sample", False)),
        ([(0, r"ValueError('caf\udce9\nsecond line')")], (0, "ValueError", "caf?", False)),
    ],
)
def test_the_exception_that_ends_a_program_is_its_termination_message(
    program: Program, tmp_path: Path, order: list[tuple[int, str | None]], expected: tuple[int, str, str, bool]
) -> None:
    message = tmp_path / "termination-log"
    for rank, error in order:
        program.set(RANK=str(rank))
        done = run(program, message, "" if error is None else f"raise {error}")
        assert done.returncode == (error is not None), done.stderr
        assert ("Traceback" in done.stderr) == (error is not None)
    found = TerminationMessage.decode(message.read_text())
    assert found is not None
    assert (found.rank, found.exception, found.message, found.peer_lost) == expected


def test_other_processes_and_other_pods_leave_no_figures(program: Program, tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    # A child that has inherited the reporter.
    run(program, message, "import os\nif os.fork() == 0: sys.exit(0)\nos.wait(); os._exit(0)")
    assert not message.exists()
    program.set(RANK="1")
    assert run(program, message).returncode == 0
    assert not message.exists()
    program.set(RANK="0")
    program.env.delenv(constants.ENV_JOB)
    assert run(program, message).returncode == 0
    assert not message.exists()


def test_a_message_that_cannot_be_written_does_not_fail_the_program(program: Program, tmp_path: Path) -> None:
    done = run(program, tmp_path / "missing" / "termination-log")
    assert done.returncode == 0
    assert "the termination message cannot be written to" in done.stderr


def test_variables_that_the_kubelet_sets_for_a_service_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (constants.ENV_METRICS_PORT, launcher_protocol.ENV_LAUNCHER_PORT, launcher_protocol.ENV_ATTEMPT):
        monkeypatch.setenv(name, "tcp://10.96.0.17:9400")
    assert launcher_protocol.port_number(constants.ENV_METRICS_PORT, 9400) == 9400
    assert launcher_protocol.port_number(launcher_protocol.ENV_LAUNCHER_PORT, 9401) == 9401
    assert launcher_protocol.attempt_number() == 0
    assert Launcher.from_environment().attempt == 0


def test_port_in_use_is_an_error(program: Program) -> None:
    program.begin()
    with pytest.raises(OSError, match="in use"):
        Reporter()
