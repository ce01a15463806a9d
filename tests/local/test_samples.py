"""Every sample of the built-in trainer runs on this machine.

Its first tier has one sample of each kind of data and of model. The layouts of the others are proven by
tests/trainer/test_layouts.py, and tests/e2e/test_samples.py trains on four pods with two axes.
"""

import json
import math
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.local.test_command import run
from tests.support.samples import OF_CLAIMS, TRAINED, sample
from tests.trainer.saved_models import save_model
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


def write_corpus(folder: Path) -> None:
    """Write what the claim `corpus` holds, from the source code of Python's standard library."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))
    (folder / "web").mkdir()
    (folder / "web" / "0.jsonl").write_text("".join(json.dumps({"text": m.read_text()}) + "\n" for m in modules))
    (folder / "code").mkdir()
    for module in modules[:10]:
        (folder / "code" / module.name).write_text(module.read_text())
    content = np.frombuffer(b"".join(module.read_bytes() for module in modules), np.uint8).astype(np.uint16)
    content[:-10_000].tofile(folder / "train.bin")
    content[-10_000:].tofile(folder / "val.bin")


def write_model(folder: Path) -> None:
    """Write a small random model in the shape of Qwen 3 for 384 tokens, its tokenizer, and conversations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    save_model("qwen3", folder / "model", vocab_size=384)
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer, encoder.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    encoder.train_from_iterator(
        [Path(__file__).read_text()],
        trainers.BpeTrainer(vocab_size=384, show_progress=False, special_tokens=special, initial_alphabet=alphabet),
    )
    encoder.save(str(folder / "model" / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "model" / "chat_template.jinja").write_text(template)
    talks = [[("user", f"What is {i} + {i}?"), ("assistant", f"{2 * i}")] for i in range(200)]
    lines = (json.dumps({"messages": [{"role": r, "content": c} for r, c in talk]}) for talk in talks)
    (folder / "chat.jsonl").write_text("\n".join(lines))


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
        body["spec"]["trainer"]["data"]["vocabSize"] = 384
    done = run("-", "-o", "json", "--folder", str(tmp_path / "run"), stdin=yaml.safe_dump(body))
    assert done.returncode == 0, done.stderr
    progress = json.loads(done.stdout)["status"]["progress"]
    assert progress["step"] == 3
    assert 0 < progress["evalLoss"] < 12
    sources = {"loss_web", "loss_code"} if "sources" in body["spec"]["trainer"]["data"] else set()
    assert {name for name in progress["metrics"] if name.startswith("loss_")} == sources
    if "export" in body["spec"]["trainer"]:
        assert (tmp_path / "exported" / "config.json").exists()
