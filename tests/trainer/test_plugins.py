"""Plug-ins: the example of docs/plugins.md on several layouts, parts of it alone, and what is refused."""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, TOLERANCE, Layout, Reports, extended, pipe
from tests.trainer.pods import ROOT, Starter, finish
from trainyard.admission import load_manifest
from trainyard.config import RunConfig
from trainyard.estimate import estimate
from trainyard.protocol import constants
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.plugin import Plugin, load_plugin, prepare_samples
from trainyard_trainer.runtime.errors import ConfigError

PAGE = (ROOT / "docs/plugins.md").read_text()
MANIFEST = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)[0]
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[0]
ENTRY = "tests.trainer.model_spies:with_plugins"
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the example, and with lines to learn from."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "lines_plugin.py").write_text(CODE)
    lines = [f"{n} times {n % 7} is {n * (n % 7)}" for n in range(200)]
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder


def configure(folder: Path, layout: Layout, **changes: Any) -> RunConfig:
    trainer: dict[str, Any] = yaml.safe_load(MANIFEST)["spec"]["trainer"]
    trainer |= {"batch": {"global": 8, "micro": layout.micro}, "stop": {"steps": STEPS}, "logEverySteps": 1}
    trainer |= {"options": {"width": "16", "depth": "2", "smoothing": "0.1"}, "optimizer": {"learningRate": 0.01}}
    trainer["data"] |= {"path": str(folder / "lines.txt"), "sequenceLength": 16}
    checkpoint = changes.pop("checkpoint", None)
    return make_config(
        layout.processes, layout.parallelism, replace=True, checkpoint=checkpoint, **{**trainer, **changes}
    )


def run(start: Starter, folder: Path, layout: Layout, **changes: Any) -> Reports:
    pods = start(configure(folder, layout, **changes), 1, layout.processes, ENTRY, {"TEST_PLUGINS": str(folder)})
    assert set(finish(pods)) == {0}, [pod.stderr for pod in pods]
    return [*pods[0].reports, *pods[0].evaluations]


def assert_equal(found: Reports, expected: Reports) -> None:
    assert len(found) == len(expected) == STEPS + 1
    for report, reference in zip(found[:STEPS], expected[:STEPS], strict=True):
        for key in ("loss", "gradNorm"):
            assert report[key] == pytest.approx(reference[key], rel=TOLERANCE), key
    assert found[STEPS] == pytest.approx(expected[STEPS], rel=TOLERANCE)


@pytest.fixture(scope="module")
def alone(start: Starter, folder: Path) -> Reports:
    return run(start, folder, Layout(1, {}))


def test_the_manifest_of_the_page_is_admitted_and_not_estimated() -> None:
    job = load_manifest(MANIFEST)
    assert estimate(job).training is None
    assert estimate(job).problems == ()


def test_the_example_learns(alone: Reports) -> None:
    *reports, evaluation = alone
    assert reports[-1]["loss"] < reports[0]["loss"] - 0.05
    # The metric is the module's; there is no perplexity of a smoothed loss.
    assert evaluation.keys() == {"loss", "accuracy", "digits"}
    assert 0 <= evaluation["digits"] <= 1


@pytest.mark.parametrize(
    "layout",
    [
        Layout(4, {"tensor": 2, "data": FSDP}, 2),
        Layout(2, {"data": {"mode": "parameterServer"}}),
        *extended([Layout(2, {}), Layout(2, {"data": FSDP}), Layout(2, {"tensor": 2})]),
    ],
    ids=str,
)
def test_the_example_trains_the_same_on_every_layout(
    start: Starter, folder: Path, alone: Reports, layout: Layout
) -> None:
    assert_equal(run(start, folder, layout), alone)


def test_its_blocks_can_be_recomputed(start: Starter, folder: Path, alone: Reports) -> None:
    assert_equal(run(start, folder, Layout(2, {"data": FSDP}), activationCheckpointing="full"), alone)


def test_its_checkpoints_resume_on_another_layout(start: Starter, folder: Path, alone: Reports, tmp_path: Path) -> None:
    checkpoint = {"everySteps": 2, "async": False}
    schedule = {"name": "constant"}
    env = {"TEST_PLUGINS": str(folder), constants.ENV_CHECKPOINTS: str(tmp_path)}
    losses = []
    for layout, steps in ((Layout(2, {"data": FSDP}), 2), (Layout(2, {"tensor": 2}), STEPS)):
        config = configure(folder, layout, checkpoint=checkpoint, schedule=schedule, stop={"steps": steps})
        (pod,) = start(config, 1, layout.processes, ENTRY, env)
        assert finish([pod]) == [0], pod.stderr
        losses += [report["loss"] for report in pod.reports]
    wider = {"options": {"width": "24", "depth": "2", "smoothing": "0.1"}}
    (other,) = start(configure(folder, Layout(1, {}), checkpoint=checkpoint, **wider), 1, 1, ENTRY, env)
    assert finish([other]) == [78]
    assert "its parameter embed.weight has the shape [256, 24], but has the shape [256, 16] in" in other.stderr
    whole = run(start, folder, Layout(1, {}), schedule=schedule)
    assert losses == pytest.approx([report["loss"] for report in whole[:STEPS]], rel=TOLERANCE)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(2, {"pipeline": pipe(2)}),
        *extended([Layout(2, {"data": FSDP}), Layout(2, {"tensor": 2}), Layout(2, {"context": 2})]),
    ],
    ids=str,
)
def test_data_loss_and_metrics_serve_a_llama_as_well(start: Starter, folder: Path, layout: Layout) -> None:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    model = {"name": "llama", "preset": "nano", **sizes}
    expected = run(start, folder, Layout(1, {}), model=model)
    assert_equal(run(start, folder, layout, model=model), expected)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "there is no module broken_plugin in the worker; use an image that has it, or mount its folder"),
        ("", "broken_plugin has no function build; correct the name"),
        ("def build(config): return 3", "broken_plugin:build has returned a int; let it return a trainyard_trainer"),
        (
            "from trainyard_trainer.plugin import Plugin\ndef build(config): return Plugin(metrics={'accuracy': None})",
            "its metric 'accuracy' must be named in letters, digits and _, and not as one of the trainer's",
        ),
    ],
)
def test_a_wrong_module_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, message: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    if code is not None:
        (tmp_path / "broken_plugin.py").write_text(code)
    with pytest.raises(ConfigError, match=re.escape(f"spec.trainer.module: {message}")):
        load_plugin(configure(folder, Layout(1, {}), module="broken_plugin:build"))


def test_an_import_that_fails_inside_of_the_module_keeps_its_traceback(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needy_plugin.py").write_text("import package_that_does_not_exist")
    with pytest.raises(ModuleNotFoundError, match="package_that_does_not_exist"):
        load_plugin(configure(folder, Layout(1, {}), module="needy_plugin:build"))


def test_parts_that_the_module_does_not_have_are_asked_for(folder: Path) -> None:
    config = configure(folder, Layout(1, {}))
    with pytest.raises(ConfigError, match=r"spec.trainer.data.source: custom is the data set of spec.trainer.module"):
        prepare_samples(config, Plugin())
    with pytest.raises(ConfigError, match=r"spec.trainer.model.name: custom is the model of spec.trainer.module"):
        FAMILIES["custom"].build(config.model, None, range(0))  # type: ignore[arg-type]


def test_samples_of_other_shapes_are_refused(folder: Path) -> None:
    class Short:
        fingerprint = 1

        def __len__(self) -> int:
            return 4

        def read(self, numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(numbers), 15), torch.zeros(len(numbers), 15)

    samples = prepare_samples(configure(folder, Layout(1, {})), Plugin(data=Short()))
    with pytest.raises(
        ConfigError, match=r"inputs \[2, 15\] and targets \[2, 15\], but 2 samples of sequenceLength 16"
    ):
        samples.read([0, 1], 0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("axis", "message"),
    [("tensor", "has no tensor plan; remove it"), ("context", "names no attention layers; remove it")],
)
def test_an_axis_that_the_plan_does_not_divide_is_refused(
    start: Starter, folder: Path, tmp_path: Path, axis: str, message: str
) -> None:
    plain = CODE.replace("    def tensor_plan(self):", "    def other(self):")
    (tmp_path / "lines_plugin.py").write_text(textwrap.dedent(plain))
    (pod,) = start(configure(folder, Layout(2, {axis: 2})), 1, 2, ENTRY, {"TEST_PLUGINS": str(tmp_path)})
    assert finish([pod]) == [78]
    assert f"spec.parallelism.{axis}: the model of spec.trainer.module {message}" in pod.stderr
