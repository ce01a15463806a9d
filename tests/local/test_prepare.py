"""`trainyard prepare`: the data of a job, tokenized ahead of it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import make_manifest, trainer_spec
from tests.local.test_command import COMMAND


def prepare(folder: Path, data: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    manifest = folder / "job.yaml"
    model = {"name": "mlp"} if data.get("source") == "table" else {"name": "llama", "preset": "nano"}
    manifest.write_text(yaml.safe_dump(make_manifest(trainer=trainer_spec(model=model, data=data))))
    command = [*COMMAND, "prepare", str(manifest), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_what_is_prepared_is_found_by_the_next_one_and_is_a_source_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one two three " * 200)
    data = {"source": "text", "path": str(tmp_path / "text"), "tokenizer": "bpe", "vocabSize": 512}
    done = prepare(tmp_path, data, "--cache", str(tmp_path / "cache"), "--processes", "1")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"data: ([\d,]+) tokens in (.*)\n", done.stdout)
    assert found is not None, done.stdout
    written = {path: path.stat().st_mtime_ns for path in Path(found[2]).iterdir()}
    again = prepare(tmp_path, {**data, "cache": str(tmp_path / "cache")})
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    assert {path: path.stat().st_mtime_ns for path in Path(found[2]).iterdir()} == written
    tokens = prepare(tmp_path, {"source": "tokens", "path": found[2], "vocabSize": 512, "cache": "/unused"})
    assert (tokens.returncode, tokens.stdout) == (0, done.stdout), tokens.stderr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "text", "builtin": "python-stdlib"}, "spec.trainer.data.cache: the tokens need a folder"),
        ({"source": "text", "path": "/missing", "cache": "/tmp"}, "spec.trainer.data.path: /missing does not exist"),
        ({"source": "table", "builtin": "digits"}, "spec.trainer.data: there is nothing to prepare"),
    ],
)
def test_a_mistake_is_bad_input(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    done = prepare(tmp_path, data)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_it_needs_no_torch() -> None:
    program = "import sys, trainyard_trainer.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
