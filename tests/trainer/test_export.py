"""Exported weights, from any layout: transformers computes the same logits and the same text from them."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, SERVER, Layout, pipe
from tests.trainer.pods import ENTRY, Pod, Starter, finish
from tests.trainer.saved_models import save_model
from trainyard.protocol import constants
from trainyard.resource.export import Export as ExportSpec
from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import MANIFEST
from trainyard_trainer.runtime import process_exit
from trainyard_trainer.runtime.errors import ExportFailed
from trainyard_trainer.runtime.world import World
from trainyard_trainer.weights.export import PARTIAL, Export, export
from trainyard_trainer.weights.final_export import FinalExport
from trainyard_trainer.weights.folder import WeightsError, load_model, open_weights
from trainyard_trainer.weights.hugging_face import CONFIG, INDEX, HuggingFaceWeights
from trainyard_trainer.weights.tokenizer_files import byte_tokenizer

BPE = {"tokenizer": "bpe", "vocabSize": 512}
LLAMA = {"heads": 4, "kvHeads": 2, "layers": 4}
MOE = {"name": "moe", "experts": 4, "expertsPerToken": 2, "layers": 2}
MLP = {"model": {"name": "mlp", "hiddenSizes": [16]}, "data": {"source": "table", "builtin": "digits"}}


def run(start: Starter, folder: Path, layout: Layout, **changes: Any) -> list[Pod]:
    """Train a few steps with checkpoints in a folder, and export the weights."""
    entry = changes.pop("entry", ENTRY)
    settings = {"stop": {"steps": 3}, "export": {}, **changes}
    replace = settings["model"].get("name") == "mlp"
    if replace:
        settings = {"optimizer": {"learningRate": 0.01}, "batch": {"global": 8}, **settings}
    config = make_config(layout.processes, layout.parallelism, checkpoint={"async": False}, replace=replace, **settings)
    return start(config, 1, layout.processes, entry, {constants.ENV_CHECKPOINTS: str(folder)})


def text_of_transformers(folder: Path, prompt: str) -> tuple[Tensor, str]:
    """Return the logits of a prompt, and the text that follows it by greedy decoding, as users of transformers do."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    return logits, tokenizer.decode(tokens)


def text_of_ours(folder: Path, prompt: str) -> tuple[Tensor, str]:
    """Return the same from the checkpoint in a folder, computed here."""
    from tokenizers import Tokenizer

    loaded = load_model(folder)
    tokenizer = byte_tokenizer() if loaded.tokenizer is None else Tokenizer.from_file(str(loaded.tokenizer))
    tokens = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.no_grad():
        logits: Tensor = loaded.module(tokens)
        for _ in range(6):
            tokens = torch.cat((tokens, loaded.module(tokens)[:, -1:].argmax(-1)), dim=-1)
    return logits, tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False)


RUNS: dict[str, tuple[Layout, dict[str, Any]]] = {
    "llama with tensor and fsdp": (
        Layout(4, {"tensor": 2, "data": FSDP}),
        {"model": {**LLAMA, "qkNorm": True, "headDim": 16}, "data": BPE},
    ),
    "llama in a pipeline": (Layout(2, {"pipeline": pipe(2)}), {"model": LLAMA}),
    "moe with divided experts": (Layout(2, {"expert": 2, "data": FSDP}), {"model": MOE, "data": BPE}),
}


@pytest.mark.parametrize("name", RUNS)
def test_transformers_gives_the_same_logits_and_text(name: str, start: Starter, tmp_path: Path) -> None:
    layout, settings = RUNS[name]
    pods = run(start, tmp_path, layout, **settings)
    assert finish(pods, 120) == [0], pods[0].stderr
    folder = tmp_path / "export"
    logits, text = text_of_transformers(folder, "def main")
    expected, expected_text = text_of_ours(tmp_path, "def main")
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert text == expected_text
    assert text.startswith("def main")
    # What was exported can be exported, loaded and explained like any other folder.
    again = open_weights(folder)
    assert again.record is not None
    assert again.record == open_weights(tmp_path).record
    assert not (folder / PARTIAL).exists()
    card = (folder / "README.md").read_text()
    assert f"| run | {again.run} |" in card
    assert "| optimizer steps | 3 |" in card
    assert "training loss" in card


def test_an_mlp_is_a_program_that_needs_nothing_of_trainyard(start: Starter, tmp_path: Path) -> None:
    pods = run(start, tmp_path, Layout(2, {"data": SERVER}), **MLP)
    assert set(finish(pods, 120)) == {0}, pods[0].stderr
    rows = torch.randn(5, 64)
    torch.save(rows, tmp_path / "rows")
    program = (
        "import sys, torch; model = torch.export.load('export/model.pt2').module(); "
        "torch.save(model(torch.load('rows')), 'logits'); sys.exit('trainyard_trainer' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "logits")
    for folder in (tmp_path, tmp_path / "export"):
        with torch.no_grad():
            torch.testing.assert_close(found, load_model(folder).module(rows), rtol=1e-6, atol=1e-6)


def test_shards_are_loaded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process holds more than a shard; a parameter that is larger is a shard of its own."""
    source = save_model("mixtral", tmp_path / "saved")
    limit, loads = 20_000, []
    load = HuggingFaceWeights.load

    def spy(self: HuggingFaceWeights, tensors: Mapping[str, Tensor], group: Any = None) -> None:
        loads.append([tensor.nbytes for tensor in tensors.values()])
        load(self, tensors, group)

    monkeypatch.setattr(HuggingFaceWeights, "load", spy)
    export(open_weights(source), tmp_path / "out", shard_bytes=limit)
    assert len(loads) > 3
    assert all(sum(shard) <= limit or len(shard) == 1 for shard in loads)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) == len(loads)
    assert index["metadata"]["total_size"] == sum(map(sum, loads))


def test_processes_share_the_shards_and_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    source, target = save_model("llama", tmp_path / "saved"), tmp_path / "out"
    export(open_weights(source), target, shard_bytes=10_000)
    jobs = [Export(open_weights(source), target, "bfloat16", 20_000) for _ in range(3)]
    jobs[0].begin()
    for number, job in enumerate(jobs):
        job.write_shards(number, 3)
    jobs[0].commit()
    files = {path.name for path in target.glob("*.safetensors")}
    assert len(files) == jobs[0].shards
    modes = {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert set(modes.values()) == {modes[CONFIG]}, "who can read config.json can read the tensors"
    found, expected = load_model(target).module.state_dict(), load_model(source).module.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value.bfloat16().float()), name
    assert json.loads((target / CONFIG).read_text())["dtype"] == "bfloat16"


def test_a_shard_of_another_volume_is_missed(tmp_path: Path) -> None:
    source = save_model("llama", tmp_path / "saved")
    job = Export(open_weights(source), tmp_path / "out", shard_bytes=10_000)
    job.begin()
    job.write_shards(0, 2)
    with pytest.raises(WeightsError, match="which another worker has written; mount the same volume at"):
        job.commit()
    with pytest.raises(WeightsError, match="holds no weights"):
        open_weights(tmp_path / "out")


def alone() -> World:
    return World(rank=0, local_rank=0, size=1, local_size=1, device=torch.device("cpu"), servers=0)


@pytest.fixture(scope="module")
def checkpoint(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a small llama, on bytes, with its checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("run")
    pods = run(start, folder, Layout(1, {}), model=LLAMA, export=None)
    assert finish(pods, 120) == [0], pods[0].stderr
    assert not (folder / "export").exists()
    return folder


def test_an_export_that_fails_is_one_message_and_the_next_attempt_exports(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    final = FinalExport(ExportSpec(path=str(target)), checkpoint, alone(), bool)

    def full(_: Export) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Export, "commit", full)
        with pytest.raises(
            ExportFailed, match=r"spec.trainer.export: .*No space left on device.*MB are free"
        ) as caught:
            final.run(3)
    message = process_exit.describe(caught.value, 0, 3)
    assert (message.exception, message.peer_lost) == ("ExportFailed", False)
    assert not (target / CONFIG).exists()
    assert final.run(3)
    assert load_model(target).config == load_model(checkpoint).config


def test_an_attempt_without_its_export_fails_and_the_next_one_only_exports(start: Starter, tmp_path: Path) -> None:
    layout = Layout(2, {})
    [pod] = run(start, tmp_path, layout, model=LLAMA, entry="tests.trainer.export_faults:full_volume")
    assert finish([pod], 120) == [1]
    assert pod.word is not None
    assert (pod.word.exception, pod.word.rank, pod.word.peer_lost) == ("ExportFailed", 0, False)
    assert "No space left on device" in pod.word.message
    assert "Traceback" not in pod.stderr
    assert not (tmp_path / "export" / CONFIG).exists()
    [pod] = run(start, tmp_path, layout, model=LLAMA)
    assert finish([pod], 120) == [0], pod.stderr
    assert pod.reports == []
    assert load_model(tmp_path / "export").config == load_model(tmp_path).config


def test_a_rank_that_is_told_to_stop_leaves_no_half_of_an_export(checkpoint: Path, tmp_path: Path) -> None:
    final = FinalExport(ExportSpec(path=str(tmp_path / "out")), checkpoint, alone(), lambda: True)
    assert not final.run(3)
    assert not (tmp_path / "out" / CONFIG).exists()


def test_a_path_that_cannot_be_written_is_refused_at_the_start(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = {"path": str(tmp_path / "file" / "export")}
    [pod] = run(start, tmp_path / "run", Layout(1, {}), model=LLAMA, export=spec)
    assert finish([pod]) == [constants.EXIT_INVALID_CONFIG]
    assert "spec.trainer.export.path: " in pod.stderr
    assert "cannot be written to" in pod.stderr
    assert "Traceback" not in pod.stderr


def test_a_damaged_checkpoint_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    path = next((copy / "step-00000003").glob("*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="has a wrong checksum; use an earlier checkpoint"):
        export(open_weights(copy), tmp_path / "out")
    path.write_bytes(content[:1000])
    with pytest.raises(WeightsError, match="has 1000 bytes instead of"):
        load_model(copy)
    (copy / "step-00000003" / MANIFEST).write_text("{")
    with pytest.raises(WeightsError):
        open_weights(copy)
    assert not (tmp_path / "out").exists()


def test_folder_and_checkpoint_of_a_run_are_the_same_weights(checkpoint: Path) -> None:
    by_run, by_step = open_weights(checkpoint), open_weights(catalog.complete_folder(checkpoint, 3))
    assert by_run.path == by_step.path
    assert by_run.record is not None
    assert by_run.record.id == by_run.run
    assert by_run.manifest is not None
    assert by_run.manifest.step == 3


def test_the_byte_tokenizer_is_exact() -> None:
    tokenizer = byte_tokenizer()
    text = "Ünïcode ÿ \x00\t\n 漢字 don't  stop"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("<|endoftext|>").ids == [255]
