"""Runs that begin with weights of a folder: the same as a plain loop of transformers, on any layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, SERVER, Layout, pipe
from tests.trainer.pods import Pod, Starter, finish
from tests.trainer.saved_models import save_model
from tests.trainer.test_export import alone
from trainyard.config import RunConfig
from trainyard.manifest import ManifestError
from trainyard.protocol import constants
from trainyard.run_record import RunRecord, compare_config
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.data.tokenizer import TokenizerFile, learn_bpe
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.weights.folder import load_model
from trainyard_trainer.weights.initial import check_tokenizer, with_initial_sizes
from trainyard_trainer.weights.tokenizer_files import byte_tokenizer

STEPS = 20
OPTIMIZER = {"learningRate": 0.003, "betas": [0.9, 0.95], "eps": 1e-6, "weightDecay": 0.1, "gradientClip": 0.5}


def configure(
    folder: Path,
    layout: Layout,
    model: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **trainer: Any,
) -> RunConfig:
    """Return a run that begins with the weights of a folder; `model`: fields of spec.trainer.model."""
    settings = {
        "model": {"name": "llama", **(model or {}), "from": {"path": str(folder)}},
        "batch": {"global": 8, "micro": layout.micro},
        "optimizer": OPTIMIZER,
        "schedule": {"name": "constant"},
        "stop": {"steps": STEPS},
        **trainer,
    }
    return make_config(layout.processes, layout.parallelism, checkpoint=checkpoint, replace=True, **settings)


def losses_of_transformers(folder: Path, config: RunConfig) -> list[float]:
    """Return the losses of a plain loop over the same batches."""
    from transformers import AutoModelForCausalLM

    batches = Batches(load_samples(config), config, alone())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95), eps=1e-6)
    losses = []
    for step in range(STEPS):
        (batch,) = batches.micro_batches(step)
        logits = model(input_ids=batch.inputs).logits
        loss: Tensor = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    batches.close()
    return losses


CASES: list[tuple[str, dict[str, Any], Layout]] = [
    ("llama 3.2", {}, Layout(2, {"data": FSDP})),
    ("qwen3", {}, Layout(4, {"tensor": 2, "data": FSDP}, 2)),
    ("mixtral", {"name": "moe", "balanceLossWeight": 0.0}, Layout(2, {"expert": 2, "data": FSDP})),
]


@pytest.mark.parametrize(("name", "model", "layout"), CASES, ids=str)
def test_the_losses_are_those_of_a_plain_loop_of_transformers(
    name: str, model: dict[str, Any], layout: Layout, start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec says nothing of the sizes of the model."""
    # A mixture routes by comparing scores, so that rounding decides where two of them are almost equal.
    folder = save_model(name, tmp_path / "saved", shard="40KB", vocab_size=256, initializer_range=0.1)
    pods = start(configure(folder, layout, model), 1, layout.processes)
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))
    expected = losses_of_transformers(folder, with_initial_sizes(configure(folder, Layout(1, {}), model)))
    assert finish(pods, 120) == [0], pods[0].stderr
    assert [report["loss"] for report in pods[0].reports] == pytest.approx(expected, rel=1e-4)
    assert pods[0].reports[0]["loss"] == pytest.approx(expected[0], rel=1e-6)
    assert expected[-1] < expected[0] - 0.5


OTHER_LAYOUTS = [Layout(2, {}), Layout(2, {"pipeline": pipe(2)}), Layout(2, {"data": SERVER})]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama for bytes, in several shards."""
    return save_model("llama", tmp_path_factory.mktemp("saved") / "llama", shard="40KB", vocab_size=256)


@pytest.fixture(scope="module")
def first_losses(start: Starter, llama: Path) -> list[float]:
    """Losses of the first steps on one process."""
    [pod] = start(configure(llama, Layout(1, {}), stop={"steps": 3}), 1, 1)
    assert finish([pod]) == [0], pod.stderr
    return [report["loss"] for report in pod.reports]


@pytest.mark.parametrize("layout", OTHER_LAYOUTS, ids=str)
def test_other_layouts_read_the_same(layout: Layout, start: Starter, llama: Path, first_losses: list[float]) -> None:
    pods = start(configure(llama, layout, stop={"steps": 3}), 1, layout.processes)
    assert set(finish(pods, 120)) == {0}, pods[0].stderr
    assert [report["loss"] for report in pods[0].reports] == pytest.approx(first_losses, rel=1e-5)


def run(start: Starter, config: RunConfig, folder: Path) -> Pod:
    [pod] = start(config, 1, 1, env={constants.ENV_CHECKPOINTS: str(folder)})
    assert finish([pod]) == [0], pod.stderr
    return pod


def test_a_run_is_resumed_without_the_folder_and_is_itself_a_beginning(
    start: Starter, llama: Path, tmp_path: Path
) -> None:
    source, first, second = tmp_path / "source", tmp_path / "first", tmp_path / "second"
    shutil.copytree(llama, source)
    config = configure(source, Layout(1, {}), checkpoint={"everySteps": 2}, stop={"steps": 4}, export={})
    whole = [report["loss"] for report in run(start, config, first).reports]

    # The run is resumed, although nothing else knows the sizes of its model.
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copytree(first / "step-00000002", resumed / "step-00000002")
    shutil.copyfile(first / "run.json", resumed / "run.json")
    shutil.rmtree(source)
    assert [r["loss"] for r in run(start, config, resumed).reports] == pytest.approx(whole[2:], rel=1e-5)
    record = RunRecord.read(resumed)
    assert record is not None
    assert compare_config(record, config) == []
    # Weights of transformers belong to no run, those of a run do, as a checkpoint and as an export.
    assert record.parent is None
    for folder in (first, first / "export"):
        config = configure(folder, Layout(1, {}), checkpoint={}, stop={"steps": 1})
        pod = run(start, config, second / folder.name)
        assert pod.reports[0]["loss"] < whole[0]
        child = RunRecord.read(second / folder.name)
        assert child is not None
        assert child.parent == record.id


DIGITS = {"source": "table", "builtin": "digits"}
MLP: dict[str, Any] = {
    "model": {"name": "mlp"},
    "data": {"source": "table", "builtin": "digits"},
    "stop": {"steps": 20},
}


def test_an_mlp_begins_with_the_weights_of_another_one(start: Starter, tmp_path: Path) -> None:
    first = make_config(1, replace=True, checkpoint={}, **{**MLP, "model": {"name": "mlp", "hiddenSizes": [24]}})
    run(start, first, tmp_path / "first")
    changes: dict[str, Any] = {
        "model": {"name": "mlp", "from": {"path": str(tmp_path / "first")}},
        "optimizer": {"name": "sgd", "learningRate": 1e-9},
        "stop": {"steps": 1},
    }
    run(start, make_config(1, replace=True, checkpoint={}, **{**MLP, **changes}), tmp_path / "second")
    found, expected = load_model(tmp_path / "second"), load_model(tmp_path / "first")
    assert found.config == expected.config
    for name, value in expected.module.state_dict().items():
        torch.testing.assert_close(found.module.state_dict()[name], value)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a size": (
        {"model": {"layers": 3}},
        "spec.trainer.model.layers: is 3, but .* has 2; remove it, or choose other weights",
    ),
    "a preset": ({"model": {"preset": "nano"}}, "spec.trainer.model.preset: nano has dim 128, but .* has 32; remove "),
    "another family": ({"model": {"name": "moe"}}, "spec.trainer.model.name: is moe, but .* holds a llama"),
    "a vocabulary": (
        {"data": {"source": "text", "builtin": "python-stdlib", "tokenizer": "bpe", "vocabSize": 512}},
        "spec.trainer.data.vocabSize: is 512, but .* has 256; set it to that",
    ),
    "a layout": (
        {"layout": Layout(4, {"tensor": 4})},
        "spec.parallelism: tensor x context must divide the model's heads",
    ),
    "stages": (
        {"layout": Layout(4, {"pipeline": pipe(4)})},
        "spec.parallelism.pipeline.stages: each stage needs a layer",
    ),
    "no folder": ({"folder": "/absent"}, "spec.trainer.model.from.path: /absent does not exist"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_the_weights_is_one_message(name: str, llama: Path) -> None:
    changes, message = CONTRADICTIONS[name]
    changes = dict(changes)
    layout, folder = changes.pop("layout", Layout(1, {})), changes.pop("folder", llama)
    with pytest.raises(ConfigError, match=message) as caught:
        with_initial_sizes(configure(Path(folder), layout, **changes))
    assert "\n" not in str(caught.value)


def test_frequencies_may_be_changed_for_longer_sequences(llama: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    config = with_initial_sizes(configure(llama, Layout(1, {}), {"ropeScaling": scaling}))
    assert config.model.to_dict()["ropeScaling"] == scaling
    assert config.model.to_dict()["layers"] == 2


def test_what_the_spec_says_of_the_sizes_is_checked_at_admission(llama: Path) -> None:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    layout = Layout(4, {"tensor": 4})
    assert not configure(llama, layout).sizes_known
    with pytest.raises(ManifestError, match="tensor x context must divide the model's heads"):
        configure(llama, layout, sizes)
    assert configure(llama, Layout(1, {}), sizes).sizes_known


def test_another_tokenizer_is_refused(llama: Path, tmp_path: Path) -> None:
    config = configure(llama, Layout(1, {}))
    check_tokenizer(config, None)  # the folder has no tokenizer, so there is nothing to compare
    folder = tmp_path / "with"
    shutil.copytree(llama, folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = configure(folder, Layout(1, {}))
    check_tokenizer(config, None)
    # A token more at the end is a special one for the new data.
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 256, "content": "<|user|>"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    check_tokenizer(config, TokenizerFile(tmp_path / "more.json", ""))
    learn_bpe(iter(["some text, some other text"]), 300, tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"data.tokenizer: its token \d+ is .* have learnt .*; set it to file"):
        check_tokenizer(config, TokenizerFile(tmp_path / "other.json", ""))


def test_a_worker_ends_with_one_line(start: Starter, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(llama, folder)
    min(folder.glob("*.safetensors")).unlink()
    [pod] = start(configure(folder, Layout(1, {})), 1, 1)
    assert finish([pod]) == [constants.EXIT_INVALID_CONFIG]
    assert "error: spec.trainer.model.from.path: " in pod.stderr
    assert "is missing; copy the folder again" in pod.stderr
    assert "Traceback" not in pod.stderr
