"""`trainyard plan --resume` and `trainyard run` print what resuming a run would change, and refuse what cannot be."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.samples import sample
from trainyard.admission import admit
from trainyard.resolve import resolve
from trainyard.run_record import RUN_FILE, DataRecord, RunRecord

COMMAND = [sys.executable, "-m", "trainyard_cli.main"]


def run(command: str, body: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [*COMMAND, command, "-", *arguments]
    return subprocess.run(argv, check=False, input=yaml.safe_dump(body), capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of the sample llama-checkpoint."""
    config = resolve(admit(sample("llama-checkpoint")))
    record = RunRecord(
        id="a" * 32,
        created=datetime(2030, 1, 1, 12, tzinfo=UTC),
        config=config.to_dict(),
        data=DataRecord(fingerprint=7, samples=100, eval_samples=0),
        versions={"trainyard": "1"},
    )
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "checkpoints" / RUN_FILE).write_text(record.text())
    return tmp_path


def changed(**trainer: Any) -> dict[str, Any]:
    body = sample("llama-checkpoint")
    body["spec"]["trainer"] |= trainer
    return body


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_plan_lists_what_resuming_would_change(folder: Path, place: str) -> None:
    done = run("plan", changed(precision="bfloat16"), "--resume", str(folder / place))
    assert done.returncode == 0, done.stderr
    assert f"run {'a' * 32} of 2030-01-01 12:00: changes" in done.stderr
    assert "allowed  spec.trainer.precision: float32 -> bfloat16: checkpoints are float32" in done.stderr
    assert "TrainingJob default/llama-checkpoint" in done.stdout


def test_a_plan_without_a_change_says_so(folder: Path) -> None:
    done = run("plan", changed(), "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert "2030-01-01 12:00: no changes" in done.stderr


@pytest.mark.parametrize(("command", "option"), [("plan", "--resume"), ("run", "--folder")])
def test_a_change_that_the_run_cannot_resume_with_is_refused(folder: Path, command: str, option: str) -> None:
    done = run(command, changed(seed=7), option, str(folder))
    assert done.returncode == 2
    assert "refused  spec.trainer.seed: 0 -> 7: the order of the samples follows from it" in done.stderr
    assert f"error: -: spec.trainer.seed is 7, but 0 in the run {'a' * 32}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    done = run("plan", changed(), "--resume", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith(
        f"--resume: {tmp_path} has no run.json of a run of the built-in trainer; correct the path\n"
    )
