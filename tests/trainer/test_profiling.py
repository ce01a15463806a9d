"""Traces of steps, requested in the spec or of a running job."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.layouts import Layout
from tests.trainer.pods import Starter, finish, wait_until
from tests.trainer.test_metrics import make_report
from tests.trainer.test_resume import train
from trainyard.protocol import constants
from trainyard.resource.training import Profile
from trainyard_trainer.metrics.profiling import Profiler, request_file, request_trace, trace_file


def events(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return found


def test_steps_and_ranks_of_the_spec_are_traced(start: Starter, tmp_path: Path) -> None:
    profile = {"startStep": 3, "steps": 2, "ranks": [1]}
    (pod,) = train(start, tmp_path, Layout(2, {}), profile=profile)
    assert finish([pod]) == [0], pod.stderr
    (trace,) = (tmp_path / "profiles").iterdir()
    assert trace == trace_file(tmp_path, attempt=3, step=3, rank=1)
    names = [event.get("name", "") for event in events(trace)]
    updates = sum("Optimizer.step" in name for name in names)
    assert updates == 2
    assert any("all_reduce" in name or "allreduce" in name for name in names), "communication is in it"


def test_trace_of_a_running_job(start: Starter, tmp_path: Path) -> None:
    (pod,) = train(start, tmp_path, Layout(1, {}), stop=1_000_000, logEverySteps=5)
    pod.wait_for_step(5)
    command = [sys.executable, "-m", "trainyard_trainer.metrics.profiling", "--steps", "1"]
    env = {**os.environ, constants.ENV_CHECKPOINTS: str(tmp_path)}
    subprocess.run(command, env=env, check=True)
    folder = tmp_path / "profiles"
    wait_until(lambda: any(folder.glob("3-*-rank-0.json.gz")), 60, lambda: pod.stdout[-2000:])
    assert not request_file(tmp_path, 0).exists()
    (trace,) = folder.iterdir()
    assert sum("Optimizer.step" in event.get("name", "") for event in events(trace)) == 1
    os.kill(pod.pid, 15)
    pod.wait(60)


def test_request_without_a_checkpoint_volume_is_refused() -> None:
    command = [sys.executable, "-m", "trainyard_trainer.metrics.profiling"]
    env = {name: value for name, value in os.environ.items() if name != constants.ENV_CHECKPOINTS}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "add spec.checkpoint" in done.stderr) == (2, True)


def run(profiler: Profiler, steps: range) -> None:
    for step in steps:
        profiler.before_step(step)
        profiler.after_step(step)
        profiler.reported(make_report(step=step))


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profiles").touch()  # a file where the folder should be
    profiler = Profiler(Profile(start_step=2, steps=1), tmp_path, 0, 1, torch.device("cpu"))
    run(profiler, range(1, 4))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"the trace {tmp_path}/profiles/1-2-rank-0.json.gz could not be written: ")
    assert not profiler.is_tracing
    assert (tmp_path / "profiles").read_bytes() == b""


def test_an_invalid_request_is_removed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = request_trace(tmp_path, 0, 1)
    request.write_text("{}")
    run(Profiler(None, tmp_path, 0, 1, torch.device("cpu")), range(1, 4))
    assert list((tmp_path / "profiles").iterdir()) == []
    assert f"the request {request} is invalid: 'steps'" in caplog.text
