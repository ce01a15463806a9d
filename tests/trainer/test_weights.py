"""Folders of weights: what transformers has saved has the same logits here, and what is wrong is one message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.saved_models import MODELS, save_model
from trainyard_trainer.weights.folder import WeightsError, load_model, open_weights

TOKENS = torch.arange(40).mul(7).remainder(61)[None]


def logits_of_transformers(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: Tensor = model.eval()(TOKENS).logits
    return found


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama that transformers has saved in four shards."""
    return save_model("llama", tmp_path_factory.mktemp("saved") / "llama", shard="20KB")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_has_the_same_logits_here(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    loaded = load_model(folder)
    with torch.no_grad():
        found = loaded.module(TOKENS)
    torch.testing.assert_close(found, logits_of_transformers(folder), rtol=1e-5, atol=1e-5)


def test_shards_are_one_model_and_may_be_loaded_in_another_type(llama: Path) -> None:
    assert len(list(llama.glob("*.safetensors"))) >= 4
    exact, rounded = load_model(llama), load_model(llama, dtype=torch.bfloat16, sequence_length=40)
    with torch.no_grad():
        torch.testing.assert_close(exact.module(TOKENS), logits_of_transformers(llama), rtol=1e-5, atol=1e-5)
        expected = exact.module(TOKENS)
        assert (rounded.module(TOKENS).float() - expected).norm() < 0.03 * expected.norm()
    assert {p.dtype for p in rounded.module.parameters()} == {torch.bfloat16}


def truncate(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def edit(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def pickle_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (lambda f: min(f.glob("*.safetensors")).unlink(), "model-00001-of-.* is missing; copy the folder"),
    "truncated shard": (truncate, r"model-.*\.safetensors is truncated or no file of safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no weights; name a Hugging Face folder"),
    "broken config": (break_config, "config.json is not JSON"),
    "unknown architecture": (edit(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel is not supported, only Llama"),
    "no architecture": (edit(architectures=None), "architectures: is absent"),
    "biases": (edit(attention_bias=True), "attention_bias: is True, which models here do not have"),
    "another activation": (edit(hidden_act="gelu"), "hidden_act: is gelu, but models here have silu only"),
    "sliding window": (edit(sliding_window=4), "sliding_window: is 4"),
    "unknown rope": (edit(rope_parameters={"rope_type": "dynamic"}), "rope_type is dynamic, but models here have"),
    "a word for a number": (edit(hidden_size="8"), "hidden_size: must be a whole number above 0, but is 8"),
    "other sizes": (edit(intermediate_size=72), r"has the shape \[64, 32\] instead of \[72, 32\]"),
    "more layers": (edit(num_hidden_layers=3), r"the tensor model.layers.2.* is absent"),
    "fewer layers": (edit(num_hidden_layers=1), r"the tensor model.layers.1.* are no parameters of LlamaForCausalLM"),
    "pickled": (pickle_only, r"pytorch_model.bin is pickled, and such files are not loaded"),
    "odd heads": (edit(num_key_value_heads=3), "must be a multiple of kvHeads"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_folder_is_one_message(name: str, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    change, message = DAMAGE[name]
    change(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        open_weights(tmp_path / "absent")
    with pytest.raises(WeightsError, match="holds no weights"):
        open_weights(tmp_path)
