"""Adapters: the same on every layout and in PEFT, alone in checkpoints, and merged where weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, HSDP, LLAMA, Layout, Reports, assert_equal, extended, pipe, run
from tests.trainer.pods import ENTRY, Pod, Starter, finish
from tests.trainer.saved_models import save_model, with_base
from trainyard.protocol import constants
from trainyard.resource.lora import Lora
from trainyard_cli.main import app
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.llama import FAMILY
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.lora import (
    LoraLinear,
    apply_lora,
    initial_with_adapters,
    is_adapter,
    merge,
    save_peft,
)
from trainyard_trainer.weights.adapted import AdaptedWeights
from trainyard_trainer.weights.folder import WeightsError, load_model, open_weights

LORA = {"rank": 4, "alpha": 8}

LAYOUTS = (
    Layout(1, {}, 1),
    Layout(2, {"context": 2}),
    Layout(2, {"pipeline": pipe(2, "ZBV")}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)
MORE_LAYOUTS = (
    Layout(2, {}, 2),
    Layout(2, {"data": FSDP}),
    Layout(2, {"data": FSDP}, 1),
    Layout(4, {"data": HSDP}, 1),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}),
)


PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Model = Callable[[int], dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Return spec.trainer.model of a run that trains adapters of a small Llama with so many blocks."""
    folder = tmp_path_factory.mktemp("bases")

    def of(layers: int) -> dict[str, Any]:
        return with_base({**LLAMA, "layers": layers, "lora": LORA}, folder / str(layers))

    return of


@pytest.fixture(scope="module")
def reference(start: Starter, model: Model) -> Callable[[Layout], Reports]:
    found: dict[str, Reports] = {}

    def alone(layout: Layout) -> Reports:
        key = f"{layout.layers} {layout.alone}"
        if key not in found:
            found[key] = run(start, layout.alone, model=model(layout.layers))
        return found[key]

    return alone


@pytest.mark.parametrize("layout", [*LAYOUTS, *extended(MORE_LAYOUTS)], ids=str)
def test_every_layout_trains_the_same(
    start: Starter, reference: Callable[[Layout], Reports], model: Model, layout: Layout
) -> None:
    found = run(start, layout, model=model(layout.layers))
    assert_equal(found, reference(layout))
    assert found[2]["loss"] < found[0]["loss"]


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        (Layout(1, {}), {"activationCheckpointing": "full"}),
        (Layout(2, {"data": FSDP}), {"activationCheckpointing": "selective"}),
        (Layout(2, {"data": FSDP}), {"optimizer": {"name": "muon"}}),
        *extended([(Layout(2, {"data": FSDP}), {"compile": True, "activationCheckpointing": "full"})]),
    ],
    ids=["full", "selective", "muon", "compile"],
)
def test_options_work_with_adapters(
    start: Starter,
    reference: Callable[[Layout], Reports],
    model: Model,
    layout: Layout,
    settings: dict[str, Any],
) -> None:
    entry = "tests.trainer.compiled:count" if "compile" in settings else ENTRY
    found = run(start, layout, entry, model=model(2), **settings)
    if "optimizer" in settings:
        assert found[2]["loss"] < found[0]["loss"]
    else:
        assert_equal(found, reference(layout))


def test_frozen_parameters_are_held_in_the_type_of_the_products(start: Starter, model: Model) -> None:
    """The losses are those of bfloat16 with every parameter in float32: fully_shard casts each of them anyway."""
    settings: dict[str, Any] = {"precision": "bfloat16", "optimizer": {"learningRate": 0.01}}
    halves = run(start, Layout(2, {"data": FSDP}), model=model(2), **settings)
    single = run(start, Layout(1, {}), model=model(2), **settings)
    assert [r["loss"] for r in halves[:3]] == pytest.approx([r["loss"] for r in single[:3]], rel=2e-3)


# --- beside PEFT ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random Llama that transformers has saved."""
    return save_model("llama", tmp_path_factory.mktemp("base"))


ATTENTION = Lora(rank=3, alpha=5.0, targets=("q", "v"))


def adapted(base: Path, lora: Lora) -> Llama:
    """Return a model with adapters whose products are not 0."""
    model = load_model(base).module
    assert isinstance(model, Llama)
    apply_lora(model, model.layers(), lora)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def adapters_of(model: Llama) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def in_peft(base: Path, model: Llama, lora: Lora, folder: Path) -> Any:
    """Return the model in PEFT, with the adapters that were saved."""
    import transformers
    from peft import PeftModel

    assert FAMILY.hugging_face is not None
    save_peft(folder, adapters_of(model), lora, FAMILY.hugging_face(model.config), str(base))
    return PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder, is_trainable=True)


IDS = torch.arange(48).mul(7).remainder(61).view(2, 24)


@PEFT_WARNS
@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8.0), ATTENTION], ids=["all", "attention"])
def test_peft_reads_the_adapters(base: Path, tmp_path: Path, lora: Lora) -> None:
    model = adapted(base, lora)
    logits = model(IDS)
    peft = in_peft(base, model, lora, tmp_path)
    torch.testing.assert_close(logits, peft(IDS).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, load_model(base).module(IDS), atol=1e-2)
    merged = peft.merge_and_unload()
    assert FAMILY.hugging_face is not None
    names, found = FAMILY.hugging_face(model.config), dict(model.named_parameters())
    for name, parameter in found.items():
        lora_a = found.get(name.replace(".weight", ".lora_a"))
        if lora_a is not None and not is_adapter(name):
            own = merge(parameter, lora_a, found[name.replace(".weight", ".lora_b")], lora)
            (there,) = names.to_hugging_face(name)
            torch.testing.assert_close(own, merged.get_parameter(there), rtol=1e-5, atol=1e-6)


@PEFT_WARNS
def test_steps_are_those_of_peft(base: Path, tmp_path: Path) -> None:
    model = adapted(base, ATTENTION)
    peft = in_peft(base, model, ATTENTION, tmp_path)
    losses = []
    each: Any
    logits: Callable[[], torch.Tensor]
    for each, logits in ((model, lambda: model(IDS)), (peft, lambda: peft(IDS).logits)):
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], 0.01)
        found = []
        for _ in range(10):
            loss: Any = torch.nn.functional.cross_entropy(logits()[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_adapters_change_nothing_at_first(base: Path) -> None:
    model = load_model(base).module
    assert isinstance(model, Llama)
    before = model(IDS)
    apply_lora(model, model.layers(), Lora())
    initialize_adapters(model)
    torch.testing.assert_close(model(IDS), before)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 2 * 7
    spread = torch.cat([layer.lora_a.flatten() for layer in layers if layer.in_features == 32])
    assert spread.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)


def initialize_adapters(model: Llama) -> None:
    """Give adapters their initial values, and nothing else."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if not is_adapter(name)}
    initialize(model, 0, initial_with_adapters(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.copy_(kept[name])


# --- checkpoints ----------------------------------------------------------------------------------------------------


def train(start: Starter, folder: Path, model: dict[str, Any], steps: int, procs: int = 1, **trainer: Any) -> Pod:
    settings = {"stop": {"steps": steps}, "schedule": {"name": "constant"}, **trainer}
    config = make_config(procs, checkpoint={"everySteps": 2, "async": False}, model=model, **settings)
    (found,) = start(config, 1, procs, env={constants.ENV_CHECKPOINTS: str(folder)})
    finish([found], 60)
    return found


def losses_of(pod: Pod) -> list[float]:
    return [report["loss"] for report in pod.reports]


@pytest.fixture(scope="module")
def run_folder(start: Starter, model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Return the folder of a run of four steps, and the losses of one of six."""
    folder = tmp_path_factory.mktemp("runs")
    losses = losses_of(train(start, folder / "whole", model(2), 6))
    assert losses_of(train(start, folder / "parts", model(2), 4)) == losses[:4]
    return folder / "parts", losses


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


def test_a_checkpoint_has_the_adapters_alone_and_a_run_resumes_from_it(
    start: Starter, model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    from trainyard_trainer.checkpoint.storage import saved_shapes

    folder, losses = run_folder
    saved = saved_shapes(folder / "step-00000004")
    assert {name.split(".")[0] for name in saved} == {"model", "optimizer"}
    assert all(is_adapter(name) for name in saved)
    assert len([name for name in saved if name.startswith("model.")]) == 2 * 7 * 2
    resumed = train(start, copied(folder, tmp_path), model(2), 6, procs=2)
    assert losses_of(resumed) == pytest.approx(losses[4:], rel=1e-5), resumed.stderr


def test_other_adapters_do_not_resume(
    start: Starter, model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = copied(run_folder[0], tmp_path)
    for changes, message in (
        ({"lora": {**LORA, "rank": 2}}, "spec.trainer.model.lora.rank is 2, but 4 in the run of"),
        ({"lora": None}, "spec.trainer.model.lora.rank is not set, but 4 in the run of"),
    ):
        fields = {name: value for name, value in {**model(2), **changes}.items() if value is not None}
        found = train(start, folder, fields, 6)
        assert found.word is not None
        assert message in found.word.message
        assert "the checkpoint has other adapters, or none" in found.word.message


def test_the_base_may_move_but_not_change(
    start: Starter, model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, losses = run_folder
    moved = shutil.copytree(model(2)["from"]["path"], tmp_path / "moved")
    resumed = train(start, copied(folder, tmp_path), {**model(2), "from": {"path": str(moved)}}, 6)
    assert losses_of(resumed) == pytest.approx(losses[4:], rel=1e-6), resumed.stderr
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    content = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = train(start, folder, {**model(2), "from": {"path": str(other)}}, 6)
    assert refused.word is not None
    assert "the base of the adapters (SHA-256) is " in refused.word.message
    assert "belong to the weights that they were trained on" in refused.word.message
    missing = train(start, folder, {**model(2), "from": {"path": str(tmp_path / "missing")}}, 6)
    assert missing.word is not None
    assert f"spec.trainer.model.from.path: {tmp_path / 'missing'} does not exist" in missing.word.message


def test_a_checkpoint_is_read_as_the_complete_model(
    model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder, _ = run_folder
    base = load_model(Path(model(2)["from"]["path"])).module
    loaded = load_model(folder)
    assert dict(loaded.module.named_parameters()).keys() == dict(base.named_parameters()).keys()
    ids = IDS[:, :16]
    logits = loaded.module(ids)
    assert not torch.allclose(logits, base(ids), atol=1e-3)
    weights = open_weights(folder)
    assert isinstance(weights, AdaptedWeights)
    beside = load_model(Path(model(2)["from"]["path"])).module
    assert isinstance(beside, Llama)
    apply_lora(beside, beside.layers(), weights.lora)
    beside.load_state_dict(weights.adapter_tensors(), strict=False)
    torch.testing.assert_close(logits, beside(ids), rtol=1e-5, atol=1e-5)


def test_a_base_that_is_elsewhere_is_found_by_its_link(
    model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    folder = copied(run_folder[0], tmp_path)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["trainer"]["model"]["from"]["path"] = "/nowhere"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="their base /nowhere does not exist here; put it there, or make") as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    (folder / "base").symlink_to(model(2)["from"]["path"])
    torch.testing.assert_close(load_model(folder).module(IDS[:, :16]), load_model(run_folder[0]).module(IDS[:, :16]))


@PEFT_WARNS
def test_exports_of_a_run_have_its_logits(start: Starter, model: Model, tmp_path: Path) -> None:
    """Merged, for transformers alone, and as adapters for PEFT, by two ranks each."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    logits = []
    for name in ("huggingface", "peft"):
        folder = tmp_path / name
        done = train(start, folder, model(2), 4, procs=2, export={"format": name}, batch={"global": 8})
        assert losses_of(done)[3] < losses_of(done)[0], done.stderr
        if name == "huggingface":
            found = AutoModelForCausalLM.from_pretrained(folder / "export")
        else:
            base = AutoModelForCausalLM.from_pretrained(model(2)["from"]["path"])
            found = PeftModel.from_pretrained(base, folder / "export")
        logits.append((found(IDS[:, :16]).logits, load_model(folder).module(IDS[:, :16])))
    for there, here in logits:
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[0][1], logits[1][1], rtol=1e-4, atol=1e-4)


@PEFT_WARNS
def test_the_command_exports_adapters_of_any_checkpoint(
    model: Model, run_folder: tuple[Path, list[float]], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    step, base = run_folder[0] / "step-00000002", model(2)["from"]["path"]
    done = CliRunner().invoke(app, ["export", str(step), str(tmp_path / "out"), "--format", "peft"])
    assert done.exit_code == 0, done.output
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "who can read one file can read all"
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    torch.testing.assert_close(found(IDS[:, :16]).logits, load_model(step).module(IDS[:, :16]), rtol=1e-5, atol=1e-5)
    refused = CliRunner().invoke(app, ["export", base, str(tmp_path / "other"), "--format", "peft"])
    assert refused.exit_code == 2
    assert "holds no adapters; export it in the format huggingface" in refused.stderr
