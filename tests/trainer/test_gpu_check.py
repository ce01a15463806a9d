"""The check of a machine with GPUs works: all of it runs here with tiny sizes, without a GPU.

What a GPU does, only a machine that has one can show: `make gpu-check`.
"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.distributed.checkpoint.staging import DefaultStager

from tests.bench.gpu_check import check as gpu_check
from tests.bench.gpu_check import layouts, result, speed, torn_state
from tests.bench.gpu_check.jobs import shaped
from tests.bench.gpu_check.pods import Machine
from tests.bench.gpu_check.result import Check
from tests.bench.gpu_check.sizes import ON_GPUS
from trainyard.sizing.peak_memory import rank_memory
from trainyard.sizing.process_memory import GPU_BYTES
from trainyard_trainer.runtime.world import World

GiB = 2**30
PARTS = {
    "torn state": ["torn state"],
    "losses": ["losses: fsdp, 2 ranks", "losses: tensor, 2 ranks"],
    "endings": ["a killed rank", "a rank that hangs", "a GPU without memory"],
    "speed": ["speed: tiny, 2 layers, 2 ranks", "profile: one step of tiny", "memory against plan"],
}
NEEDS_A_GPU = {"torn state", "a GPU without memory", "memory against plan", "speed: tiny, 2 layers, 2 ranks"}
"""Answers that have no bound without a GPU."""


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_check_runs(part: str, tmp_path: Path) -> None:
    assert gpu_check.main(["--device", "cpu", "--folder", str(tmp_path), "--only", part]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    found = {check["name"]: check["passed"] for check in report["checks"]}
    assert list(found) == PARTS[part]
    assert found == {name: None if name in NEEDS_A_GPU else True for name in PARTS[part]}
    page = (tmp_path / "report.md").read_text()
    assert all(f"| {name} | " in page for name in PARTS[part])
    # Without a GPU an update is done when it is queued, so no copy overtakes it.
    assert ("torn without the wait: no (torch's stager [1.0], a bare copy [1.0])" in page) is (part == "torn state")
    assert report["machine"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("ordered", "unordered", "bare", "passed", "detail"),
    [
        ([1.0], [0.0], [0.0], True, "torn without the wait: yes (torch's stager [0.0], a bare copy [0.0])"),
        ([1.0], [0.0, 1.0], [0.0], True, "torn without the wait: yes"),
        ([1.0], [1.0], [0.0], None, "torn without the wait: no (torch's stager [1.0], a bare copy [0.0]); proves"),
        ([1.0], [1.0], [1.0], None, "proves nothing: no copy can overtake the update here"),
        ([0.0, 1.0], [0.0], [0.0], False, "values in the checkpoint: [0.0, 1.0], expected [1.0]"),
        ([1.0, 2.0], [1.0], [1.0], False, "values in the checkpoint: [1.0, 2.0], expected [1.0]"),
    ],
)
def test_a_complete_checkpoint_is_a_proof_only_where_one_without_the_wait_is_torn(
    ordered: list[float], unordered: list[float], bare: list[float], passed: bool | None, detail: str
) -> None:
    check = gpu_check.judge_torn_state({"ordered": ordered, "torch": unordered, "bare": bare})
    assert check.passed is passed
    assert detail in check.detail
    assert check.figures["tornWithoutWait"] is (unordered != [1.0])


def test_the_contrast_has_the_stager_of_torch() -> None:
    world = World(0, 0, 1, 1, torch.device("cpu"), control=cast(Any, "a group"))
    assert type(torn_state.unordered(world)._stager) is DefaultStager


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--device", "cuda"])
    assert "this machine has no GPU that torch can use" in capsys.readouterr().err


def test_a_failure_on_the_way_is_an_answer(tmp_path: Path) -> None:
    def answer() -> Check:
        raise TimeoutError("not within 60 s")

    failed = result.ask("hang", answer)
    assert (failed.passed, failed.detail) == (False, "TimeoutError: not within 60 s")
    result.write(tmp_path, {"gpu": "none"}, [failed, Check("x", None, "a | b"), Check("y", True, "")], 90)
    page = (tmp_path / "report.md").read_text()
    assert "1 passed, 1 failed, in 1.5 minutes." in page
    assert "| hang | FAILED | TimeoutError: not within 60 s |" in page
    assert "| x | - | a / b |" in page


@pytest.mark.parametrize(("ranks", "names"), [(1, 5), (2, 13), (4, 17), (8, 17)])
def test_every_layout_that_the_gpus_allow_is_compared(ranks: int, names: int) -> None:
    cases = layouts.cases(ranks, quick=False)
    assert len(cases) == names
    assert all(case.ranks <= ranks for case in cases)
    # Admission accepts each of them, with the sizes that a GPU gets.
    for case in cases:
        layouts.configure(ON_GPUS, case)


def test_losses_that_differ_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layouts, "_losses", lambda *_: ([2.0, 1.9], {}))
    case, machine = layouts.cases(2, quick=True)[0], Machine(0, 2, tmp_path)
    assert layouts._compare(machine, ON_GPUS, case, [2.01, 1.9]).passed
    assert layouts._compare(machine, ON_GPUS, case, [2.05, 1.9]).passed is False


def test_memory_is_compared_with_the_plan_where_runs_are_large_enough() -> None:
    def run(name: str, measured: float, predicted: float) -> Check:
        return Check(name, True, "", {"peakBytes": measured * GiB, "predictedBytes": predicted * GiB})

    good = layouts.check_memory([run("a", 20, 21), run("small", 1, 5)])
    assert (good.passed, good.figures["ratios"]) == (True, {"a": pytest.approx(20 / 21)})
    assert layouts.check_memory([run("a", 20, 21), run("b", 26, 20)]).passed is False


@pytest.mark.parametrize(("gib", "full"), [(80, False), (10_000, True)])
def test_a_shape_has_as_many_layers_as_fit_by_the_plan(gib: int, full: bool) -> None:
    shape = ON_GPUS.shapes[1]
    config = speed.largest(shape, 1, gib * GiB)
    layers = config.model.to_dict()["layers"]
    assert (layers == 32) is full
    assert rank_memory(config, 0, True).total + GPU_BYTES <= speed.FILLED * gib * GiB
    if not full:
        larger = shaped(shape, 1, layers + 1)
        assert rank_memory(larger, 0, True).total + GPU_BYTES > speed.FILLED * gib * GiB
    assert config.model.to_dict()["vocabSize"] == 128_256
