"""Every sample of the built-in trainer runs on this machine."""

import json
from pathlib import Path

import pytest
import yaml

from tests.local.test_command import run
from tests.support.samples import TRAINED, sample


@pytest.mark.parametrize("name", TRAINED)
def test_sample_runs_without_a_cluster(name: str, tmp_path: Path) -> None:
    done = run("-", "-o", "json", "--folder", str(tmp_path), stdin=yaml.safe_dump(sample(name, steps=3)))
    assert done.returncode == 0, done.stderr
    progress = json.loads(done.stdout)["status"]["progress"]
    assert progress["step"] == 3
    assert 0 < progress["loss"] < 7
