"""`trainyard plan`: output of one screen, JSON, exit codes, and the same errors as `trainyard run`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.samples import SAMPLES, sample

COMMAND = [sys.executable, "-m", "trainyard_cli.main"]


def run(*arguments: str, stdin: str | None = None, command: str = "plan") -> subprocess.CompletedProcess[str]:
    argv = [*COMMAND, command, *arguments]
    return subprocess.run(argv, check=False, input=stdin, capture_output=True, text=True, timeout=60)


def too_small() -> dict[str, Any]:
    body = sample("llama-ddp")
    body["spec"]["workers"]["resources"]["limits"]["memory"] = "400Mi"
    return body


def test_a_plan_is_one_screen() -> None:
    done = run("manifests/samples/llama-tp-pp.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in (
        "TrainingJob default/llama-tp-pp",
        "2 x 2 ranks = 4 ranks on CPUs",
        "pipeline 2, across workers",
        "tensor 2, inside each worker",
        "2 + 2 layers, bubble 11%",
        "activations",
        "fit: a worker needs about ",
        " of 6.00Gi",
        "point-to-point",
    ):
        assert words in done.stdout
    assert len(done.stdout.splitlines()) < 40


PLANNED = ("hello", "llama-ddp", "llama-chat-lora")
"""One of each kind; tests/unit/test_estimate.py shows without the command that every sample fits."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in PLANNED else pytest.mark.extended) for name in SAMPLES]
)
def test_every_sample_has_a_plan_that_fits(name: str) -> None:
    done = run("-", "-o", "json", stdin=yaml.safe_dump(sample(name)))
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["name"] == name
    trainer = sample(name)["spec"].get("trainer")
    if trainer is not None and "from" in trainer["model"]:
        assert "only the workers know the sizes of the model" in plan["warnings"][0]
    elif trainer is not None:
        assert plan["training"]["fit"]["fits"] is True
        assert plan["training"]["parameters"] > 0
    else:
        assert "training" not in plan


def test_what_does_not_fit_is_shown_and_refused() -> None:
    text = yaml.safe_dump(too_small())
    done = run("-", stdin=text)
    assert done.returncode == 2
    assert "does not fit: a worker needs about " in done.stdout
    assert "error: -: spec.workers.resources.limits.memory: a worker has 400Mi but needs about " in done.stderr
    assert json.loads(run("-", "-o", "json", stdin=text).stdout)["training"]["fit"]["fits"] is False
    started = run("-", stdin=text, command="run")
    assert started.returncode == 2
    assert started.stderr == done.stderr
    assert started.stdout == ""


def test_without_a_limit_nothing_is_checked() -> None:
    body = sample("llama-ddp")
    del body["spec"]["workers"]["resources"]
    done = run("-", stdin=yaml.safe_dump(body))
    assert done.returncode == 0
    assert "fit: not checked; a worker needs about " in done.stdout
    assert "spec.workers.resources.limits.memory is not set" in done.stdout


def test_a_program_of_the_user_has_no_estimate() -> None:
    done = run("manifests/samples/hello.yaml")
    assert done.returncode == 0
    assert "of your own: mesh, memory and communication are not known" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Pod", "one TrainingJob is expected, found kind Pod"),
        (
            yaml.safe_dump(
                {**sample("llama-ddp"), "spec": {**sample("llama-ddp")["spec"], "parallelism": {"tensor": 3}}}
            ),
            "spec.parallelism: tensor x context x pipeline.stages must divide the world size",
        ),
    ],
)
def test_a_bad_manifest_is_refused_without_a_plan(text: str, message: str) -> None:
    done = run("-", stdin=text)
    assert done.returncode == 2
    assert f"error: -: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from trainyard_cli.main import main; "
        "sys.argv = ['trainyard', 'plan', 'manifests/samples/llama-fsdp.yaml']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    done = run(str(tmp_path / "missing.yaml"))
    assert done.returncode == 2
    assert "no such file; check the path" in done.stderr
