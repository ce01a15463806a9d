"""`trainyard run` as a process: exit codes, output on each stream, and errors without tracebacks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.builders import make_job, trainer_spec
from trainyard_cli.commands.run import prepare_folder

SAMPLE = Path("manifests/samples/llama-ddp.yaml")
COMMAND = [sys.executable, "-m", "trainyard_cli.main"]


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [*COMMAND, "run", *arguments]
    return subprocess.run(argv, check=False, input=stdin, capture_output=True, text=True, timeout=120)


def small_sample(**trainer: Any) -> dict[str, Any]:
    """The sample, shortened: two layers, short sequences, a few steps."""
    body: dict[str, Any] = yaml.safe_load(SAMPLE.read_text("utf-8"))
    spec = body["spec"]["trainer"]
    spec["model"]["layers"] = 2
    spec["data"]["sequenceLength"] = 32
    spec |= {"batch": {"global": 4}, "stop": {"steps": 20}, "logEverySteps": 5, **trainer}
    return body


@pytest.mark.parametrize(("fresh", "saves", "left"), [(False, True, True), (True, True, False), (True, False, True)])
def test_a_folder_with_checkpoints_is_continued_from_or_cleared(
    tmp_path: Path, fresh: bool, saves: bool, left: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "checkpoints" / "step-00000010"
    saved.mkdir(parents=True)
    checkpoint: dict[str, Any] = {"checkpoint": {"claim": {"size": "1Gi"}}} if saves else {}
    job = make_job(trainer=trainer_spec(), **checkpoint)
    prepare_folder(tmp_path, job, fresh=fresh)
    assert saved.exists() == left
    assert ("--fresh starts from the beginning" in capsys.readouterr().err) == (saves and not fresh)


def test_a_run_prints_the_final_job_as_json_and_its_progress_elsewhere(tmp_path: Path) -> None:
    done = run("-", "-o", "json", "--folder", str(tmp_path), stdin=yaml.safe_dump(small_sample()))
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["status"]["phase"] == "Succeeded"
    assert job["status"]["progress"]["step"] == 20
    assert job["spec"]["workers"]["replicas"] == 2
    assert "AllWorkersRunning" in done.stderr
    assert f"plot: {tmp_path}/plot.png" in done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_suspends_the_job_and_ends_its_processes(tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(small_sample(stop={"steps": 100_000})), "utf-8")
    command = [*COMMAND, "run", str(manifest), "-o", "json", "--folder", str(tmp_path / "run")]
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        deadline = time.monotonic() + 60
        while "Running step " not in errors.read_text("utf-8"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4, "two launchers and two ranks"
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors.read_text()
    status = json.loads(output)["status"]
    assert status["phase"] == "Suspended"
    assert status["progress"]["step"] >= 1
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": {"stepz": 3}}, "spec.trainer.stop.stepz: unknown field; did you mean steps?"),
        (
            {"batch": {"global": 3}},
            "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks",
        ),
        ({"data": {"source": "text", "path": "/no/such"}}, "spec.trainer.data.path: /no/such does not exist"),
    ],
)
def test_a_bad_manifest_is_one_line_and_exit_code_2(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    manifest = tmp_path / "bad.yaml"
    manifest.write_text(yaml.safe_dump(small_sample(**change)), "utf-8")
    done = run(str(manifest))
    assert done.returncode == 2
    assert f"error: {manifest}: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_only_the_worker_can_find_wrong_is_exit_code_2_too(tmp_path: Path) -> None:
    empty = tmp_path / "texts"
    empty.mkdir()
    body = small_sample(data={"source": "text", "path": str(empty)})
    done = run("-", "-o", "json", "--folder", str(tmp_path / "run"), stdin=yaml.safe_dump(body))
    assert done.returncode == 2
    status = json.loads(done.stdout)["status"]
    assert status["restarts"] == 0
    assert status["lastFailure"]["reason"] == "InvalidConfig"
    assert "spec.trainer.data.path" in status["lastFailure"]["message"]
    assert "Traceback" not in done.stderr


def test_a_failed_job_is_exit_code_1(tmp_path: Path) -> None:
    job = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "fails"},
        "spec": {"image": "none", "command": ["sh", "-c", "exit 9"], "restartPolicy": {"maxRestarts": 0}},
    }
    done = run("-", "--folder", str(tmp_path), stdin=yaml.safe_dump(job))
    assert done.returncode == 1
    assert "exit code 9" in done.stderr


def own_program(script: str, **spec: Any) -> str:
    job = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "own"},
        "spec": {"image": "none", "command": ["sh", "-c", script], "restartPolicy": {"maxRestarts": 0}, **spec},
    }
    return yaml.safe_dump(job)


def test_the_end_of_the_log_of_the_pod_that_failed_is_printed(tmp_path: Path) -> None:
    script = "for i in $(seq 30); do echo [line] $i of $RANK; done; [ $RANK = 0 ] && sleep 60; exit 3"
    done = run("-", "--folder", str(tmp_path), stdin=own_program(script, workers={"replicas": 2}))
    assert done.returncode == 1
    _, heading, printed = done.stderr.partition(f"end of {tmp_path}/pods/own-1-1/log:\n")
    assert heading, done.stderr
    assert printed.splitlines()[:20] == [f"[line] {i} of 1" for i in range(11, 31)]
    assert "of 0" not in done.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            "spec.env TOKEN: valueFrom needs a cluster; set the variable TOKEN in your shell, or remove it",
        ),
        (
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            "spec.env IP: valueFrom needs a cluster; give it a value, or remove it and set it in your shell",
        ),
        ({"name": "A=B", "value": "1"}, "spec.env 'A=B': a name must not be empty or contain = or NUL; correct it"),
    ],
)
def test_an_environment_that_cannot_exist_here_is_refused_at_once(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    done = run("-", "--folder", str(tmp_path / "run"), stdin=own_program("true", env=[entry]))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_module_in_the_working_directory_does_not_replace_one_of_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "texts").mkdir()
    body = yaml.safe_dump(small_sample(data={"source": "text", "path": str(tmp_path / "texts")}))
    command = [sys.executable, "-P", "-m", "trainyard_cli.main", "run", "-", "--folder", "run"]
    done = subprocess.run(command, check=False, input=body, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert "the wrong module" not in done.stderr
    assert "holds no files" in done.stderr, done.stderr
    assert done.returncode == 2


def test_a_folder_that_cannot_be_created_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below", Path("/proc/none")):
        done = run("manifests/samples/hello.yaml", "--folder", str(folder))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: --folder: /")
        assert line.endswith("; choose a folder that can be written")
        assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["-o", "json"], ["-o", "table"], ["--help"]])
def test_standard_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        argv = [*COMMAND, "plan", str(SAMPLE), *arguments]
        done = subprocess.run(argv, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly() -> None:
    script = f"{' '.join(COMMAND)} plan {SAMPLE} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


def test_characters_that_the_terminal_cannot_show_are_replaced() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    argv = [*COMMAND, "plan", str(SAMPLE)]
    done = subprocess.run(argv, check=False, capture_output=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"activations" in done.stdout
    assert b"####" in done.stdout
    assert done.stdout.isascii()
    missing = subprocess.run([*COMMAND, "plan", "müll.yaml"], check=False, capture_output=True, env=env, timeout=60)
    assert (missing.returncode, missing.stderr.isascii(), b"Traceback" in missing.stderr) == (2, True, False)


def test_a_second_ctrl_c_kills_processes_that_ignore_the_first(tmp_path: Path) -> None:
    command = ["sh", "-c", "trap '' TERM; touch ready; while true; do sleep 0.1; done"]
    job = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "stubborn"},
        "spec": {"image": "none", "command": command},
    }
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(job), "utf-8")
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        argv = [*COMMAND, "run", str(manifest), "--folder", str(tmp_path / "run")]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=tmp_path)
    try:
        await_condition((tmp_path / "ready").exists)
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        notice = "interrupted: asking the processes to end, which takes up to 10 s; Ctrl-C again kills them"
        await_condition(lambda: notice in errors.read_text("utf-8"))
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert time.monotonic() - started < 9, "killed, not awaited"
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.read_text("utf-8").splitlines()[-1] == "interrupted: all processes were killed"
    assert "Unknown child process" not in errors.read_text("utf-8")
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def await_condition(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_exit_code_2(name: str) -> None:
    done = run(name)
    assert done.returncode == 2
    assert f"error: {name}: " in done.stderr
    assert "Traceback" not in done.stderr
