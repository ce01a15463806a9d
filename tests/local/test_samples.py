"""Every sample of the built-in trainer runs on this machine.

Its first tier has one sample of each kind of data and of model. The layouts of the others are proven by
tests/trainer/test_layouts.py, and tests/e2e/test_samples.py trains on four pods with two axes.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.local.test_command import run
from tests.support.corpus import ENDS, VOCABULARY, write_corpus, write_model
from tests.support.samples import OF_CLAIMS, TRAINED, sample
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


def with_corpus(value: Any, folder: str) -> Any:
    """Return a manifest with another folder in place of /data."""
    if isinstance(value, dict):
        return {key: with_corpus(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_corpus(inner, folder) for inner in value]
    return value.replace("/data", folder, 1) if isinstance(value, str) and value.startswith("/data") else value


@pytest.mark.parametrize("name", OF_CLAIMS)
def test_sample_with_data_of_a_claim(name: str, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    body = sample(name, steps=3)
    body["spec"]["workers"].pop("template")
    body["spec"]["trainer"]["evaluation"] = {"everySteps": 3}
    body["spec"]["trainer"] = with_corpus(body["spec"]["trainer"], str(tmp_path))
    if "from" in body["spec"]["trainer"]["model"]:
        write_model(tmp_path)
        body["spec"]["trainer"]["data"]["vocabSize"] = VOCABULARY
    done = run("-", "-o", "json", "--folder", str(tmp_path / "run"), stdin=yaml.safe_dump(body))
    assert done.returncode == 0, done.stderr
    progress = json.loads(done.stdout)["status"]["progress"]
    assert progress["step"] == 3
    assert 0 < progress["evalLoss"] < 12
    sources = {"loss_web", "loss_code"} if "sources" in body["spec"]["trainer"]["data"] else set()
    assert {name for name in progress["metrics"] if name.startswith("loss_")} == sources
    if "export" in body["spec"]["trainer"]:
        assert (tmp_path / "exported" / "config.json").exists()
        generation = json.loads((tmp_path / "exported" / "generation_config.json").read_text())
        assert generation["eos_token_id"] == ENDS, "text ends with a document, and with an answer"
