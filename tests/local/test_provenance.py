"""explain-step, record and verify as a user runs them, on one run of `trainyard run`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest
from tests.local.test_command import COMMAND

STEP = 6


def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "1000"}
    done = subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def manifest(folder: Path, **data: Any) -> Path:
    trainer = {
        "model": {"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64},
        "data": {"source": "jsonl", "path": str(folder / "data.jsonl"), "sequenceLength": 32, **data},
        "batch": {"global": 8},
        "stop": {"steps": 8},
        "logEverySteps": 1,
    }
    checkpoint = {"claim": {"size": "1Gi"}, "everySteps": 4, "async": False}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(make_manifest("traced", replicas=2, trainer=trainer, checkpoint=checkpoint)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps({"text": f"line {number} of the text that is easy to learn"}) for number in range(200)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    command("run", str(manifest(folder)), "--folder", str(folder / "out"))
    return folder / "out"


def test_a_step_is_explained_and_its_outliers_can_be_excluded(run: Path, tmp_path: Path) -> None:
    done = command("explain-step", str(run), str(STEP), "--top", "3", "--exclude", str(tmp_path / "excluded"))
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["SAMPLE", "LOSS", "GRADNORM", "DEVIATION", "PLACE", "TEXT"]
    assert len(rows) == 3
    assert "data.jsonl, line " in rows[0]
    assert "8 samples, from the state after step 4" in done.stderr
    found = json.loads(command("explain-step", str(run), str(STEP), "-o", "json").stdout)
    assert [figures["sample"] for figures in found["samples"][:3]] == [int(row.split()[0]) for row in rows]
    in_pod = [sys.executable, "-m", "trainyard_trainer.replay", str(run / "checkpoints"), str(STEP)]
    again = subprocess.run(in_pod, check=True, capture_output=True, text=True, timeout=120)
    assert json.loads(again.stdout) == found


def test_a_record_is_shown_signed_and_verified(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run / "checkpoints", folder)
    for arguments in (["genpkey", "-algorithm", "ed25519"], ["pkey", "-in", str(tmp_path / "key"), "-pubout"]):
        target = tmp_path / ("public" if "-pubout" in arguments else "key")
        subprocess.run(["openssl", *arguments, "-out", str(target)], check=True, capture_output=True)
    assert "no key" in command("record", str(folder)).stdout
    key = ["--key", str(tmp_path / "public")]
    refused = command("verify", str(folder), *key, code=1)
    assert "has no signature" in refused.stderr
    command("record", str(folder), "--sign", str(tmp_path / "key"))
    done = command("verify", str(folder), *key, "--data", "--steps", "0..8", "--manifest", str(run.parent / "job.yaml"))
    assert done.stdout.splitlines()[-1] == "verified"
    assert "steps: 1 to 8 computed again (one process, the run had another layout or machine): 8 reports" in done.stdout
    shown = json.loads(command("record", str(folder), "-o", "json").stdout)
    assert shown["predicate"]["run"]["config"]["worldSize"] == 2
    assert len(shown["keys"]) == 1
    (folder / "step-00000008" / "more").touch()
    assert "more is not in the record of" in command("verify", str(folder), code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain-step", "RUN", "0"], "STEP"),
        (["explain-step", "/", "1"], "/ has no run.json; name the folder of a run"),
        (["verify", "/"], "/ has no record.intoto.json; name a checkpoint, an export, or a run"),
        (["verify", "RUN", "--steps", "4-8"], "--steps: 4-8 must be two steps as in 100..200; correct it"),
        (["verify", "RUN", "--key", "/missing"], "--key: /missing cannot be read (No such file or directory)"),
        (["record", "RUN", "--sign", "/missing"], "--sign: /missing cannot be read (No such file or directory)"),
    ],
)
def test_a_mistake_is_bad_input(run: Path, arguments: list[str], message: str) -> None:
    done = command(*(str(run) if argument == "RUN" else argument for argument in arguments), code=2)
    assert message in done.stderr
