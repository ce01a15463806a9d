"""What a launcher does with the output of a program: it passes it on, and keeps its end for the failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainyard.protocol import launcher, launcher_protocol
from trainyard.protocol.log_tail import MAX_CHARACTERS, find_failure

FIGURES = json.dumps({"rank": 0, "step": 9, "progress": {"step": 9}})
EXPLAINED = json.dumps({"rank": 0, "exception": "KeyError", "message": "'x'"})
FAILING = "import sys; print('a' * 200_000); sys.stdout.flush(); raise ValueError('bad sample')"


def start(script: str, folder: Path, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run a script under a launcher, as in a pod without restarts."""
    environment = {**os.environ, launcher_protocol.ENV_TERMINATION_LOG: str(folder / "termination-log")}
    environment.pop(launcher_protocol.ENV_TOKEN, None)
    command = [sys.executable, launcher.__file__, sys.executable, "-c", script]
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, cwd=folder, timeout=60, check=False
    )


def test_all_output_is_passed_on_and_a_failure_explained(tmp_path: Path) -> None:
    done = start(FAILING, tmp_path)
    assert done.returncode == 1
    assert done.stdout == b"a" * 200_000 + b"\n"
    assert done.stderr.endswith(b"ValueError: bad sample\n")
    message = (tmp_path / "termination-log").read_bytes()
    assert len(message) <= launcher.MAX_MESSAGE_BYTES < MAX_CHARACTERS
    assert find_failure(message.decode()).exception == "ValueError"


@pytest.mark.parametrize(
    ("written", "exception"), [("", "ValueError"), (FIGURES, "ValueError"), (EXPLAINED, None), ("out of luck", None)]
)
def test_a_message_of_the_program_about_its_failure_stays(tmp_path: Path, written: str, exception: str | None) -> None:
    message = tmp_path / "termination-log"
    message.write_text(written)
    assert start(FAILING, tmp_path).returncode == 1
    if exception is None:
        assert message.read_text() == written
    else:
        assert find_failure(message.read_text()).exception == exception


def test_a_program_that_succeeds_leaves_what_it_has_written(tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    message.write_text(FIGURES)
    assert start("print('Error: none')", tmp_path).returncode == 0
    assert message.read_text() == FIGURES


def test_output_that_is_not_text_is_passed_on_as_it_is(tmp_path: Path) -> None:
    done = start(r"import os; os.write(1, b'caf\xe9\x00'); os.write(2, b'\xff: bad\n'); os._exit(3)", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"caf\xe9\x00", b"\xff: bad\n")
    assert (tmp_path / "termination-log").read_text("utf-8").endswith("\N{REPLACEMENT CHARACTER}: bad\n")


def test_output_that_cannot_be_written_does_not_end_the_program(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = start("print('x' * 100_000, flush=True); raise SystemExit(4)", tmp_path, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 4


def test_output_of_a_process_that_outlives_the_program_is_not_waited_for(tmp_path: Path) -> None:
    script = "import subprocess; subprocess.Popen(['sleep', '100']); print('done', flush=True)"
    assert start(script, tmp_path).stdout == b"done\n"
