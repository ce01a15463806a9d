"""Every sample of the built-in trainer runs on this machine.

Its first tier has one sample of each kind of data and of model. The layouts of the others are proven by
tests/trainer/test_layouts.py, and tests/e2e/test_samples.py trains on four pods with two axes.
"""

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.local.test_command import run
from tests.support.samples import TRAINED, sample
from trainyard.admission import admit
from trainyard.resolve import resolve

FIRST = ("llama-ddp", "mlp-digits", "mlp-parameter-server", "moe-ep")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST else pytest.mark.extended) for name in TRAINED]
)
def test_sample_runs_without_a_cluster(name: str, tmp_path: Path) -> None:
    body = sample(name, steps=3)
    done = run("-", "-o", "json", "--folder", str(tmp_path), stdin=yaml.safe_dump(body))
    assert done.returncode == 0, done.stderr
    progress = json.loads(done.stdout)["status"]["progress"]
    assert progress["step"] == 3
    uniform_guess = math.log(getattr(resolve(admit(body)).model, "vocab_size", 10))
    assert 0 < progress["loss"] < uniform_guess + 1.5
