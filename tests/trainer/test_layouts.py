"""Every layout of the ranks gives the same losses and gradient norms as one process: the table of what is exact."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.trainer.pods import ENTRY, Pod, Starter, finish, make_config
from trainyard.optimization import OPTIMIZER_PARAMETERS

TOLERANCE = 1e-5
"""Relative; fp32 sums in another order."""
MUON_TOLERANCE = 1e-3
"""Muon makes its updates orthogonal in bfloat16, whose rounding error is 4e-3."""
HELD_OUT = {"heldOut": 0.00005}
STEPS = 5


class Layout(NamedTuple):
    """How the ranks are laid out, and how many there are."""

    processes: int
    parallelism: dict[str, Any]
    micro: int | str = "auto"

    def __str__(self) -> str:
        words = [f"{self.processes}p"]
        for key, value in self.parallelism.items():
            inner = "-".join(str(v) for v in value.values()) if isinstance(value, dict) else value
            words.append(str(inner) if key == "data" else f"{key}{inner}")
        return " ".join(words) + (f" micro{self.micro}" if self.micro != "auto" else "")


FSDP = {"mode": "fsdp"}
HSDP = {"mode": "hsdp", "shard": 2}
SERVER = {"mode": "parameterServer"}


def pipe(stages: int, schedule: str = "1F1B") -> dict[str, Any]:
    return {"stages": stages, "schedule": schedule}


LAYOUTS = (
    Layout(1, {}, 1),
    Layout(2, {}),
    Layout(4, {}, 1),
    Layout(2, {"data": FSDP}),
    Layout(4, {"data": FSDP}, 1),
    Layout(4, {"data": HSDP}),
    Layout(1, {"data": SERVER}),
    Layout(2, {"data": SERVER}),
    Layout(4, {"data": SERVER}, 1),
    Layout(2, {"tensor": 2}),
    Layout(2, {"tensor": 2}, 2),
    Layout(4, {"tensor": 4}),
    Layout(4, {"tensor": 2}),
    Layout(4, {"tensor": 2, "data": FSDP}, 2),
    Layout(8, {"tensor": 2, "data": HSDP}),
    Layout(2, {"context": 2}),
    Layout(4, {"context": 4}, 4),
    Layout(4, {"context": 2}),
    Layout(4, {"context": 2, "data": FSDP}),
    Layout(8, {"context": 2, "data": HSDP}),
    Layout(4, {"context": 2, "tensor": 2}),
    Layout(8, {"context": 2, "tensor": 2, "data": FSDP}),
    Layout(2, {"pipeline": pipe(2, "GPipe")}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}),
    Layout(2, {"pipeline": pipe(2, "ZBV")}),
    Layout(4, {"pipeline": pipe(4)}),
    Layout(4, {"pipeline": pipe(2)}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
    Layout(4, {"pipeline": pipe(2, "Interleaved1F1B"), "data": FSDP}),
    Layout(4, {"pipeline": pipe(2, "ZBV"), "tensor": 2}),
    Layout(4, {"pipeline": pipe(2), "tensor": 2}),
    Layout(4, {"pipeline": pipe(2), "context": 2}),
    Layout(8, {"pipeline": pipe(2), "tensor": 2}),
    Layout(8, {"pipeline": pipe(2), "tensor": 2, "data": FSDP}),
    Layout(8, {"pipeline": pipe(2), "context": 2, "tensor": 2}),
    Layout(8, {"pipeline": pipe(2, "Interleaved1F1B"), "context": 2, "data": FSDP}),
)

MODEL = {"layers": 4, "heads": 8, "kvHeads": 4}


def can_evaluate(layout: Layout) -> bool:
    """Admission refuses held-out samples for the one schedule that has no forward pass alone."""
    return bool(layout.parallelism.get("pipeline", {}).get("schedule") != "ZBV")


Reports = list[dict[str, Any]]


def run(
    start: Starter, layout: Layout, checkpointing: str = "none", extra: dict[str, Any] | None = None, **optimizer: Any
) -> Reports:
    """What rank 0 reports of each step, and last what it found on the held-out samples."""
    pods = finished_pods(start, layout, checkpointing, extra, **optimizer)
    return [*pods[0].reports, *pods[0].evaluations]


def finished_pods(
    start: Starter,
    layout: Layout,
    checkpointing: str = "none",
    extra: dict[str, Any] | None = None,
    entry: str = ENTRY,
    **optimizer: Any,
) -> list[Pod]:
    config = make_config(
        layout.processes,
        layout.parallelism,
        model=MODEL,
        batch={"global": 8, "micro": layout.micro},
        stop={"steps": STEPS},
        data=HELD_OUT if can_evaluate(layout) else {},
        optimizer=optimizer or {"eps": 1e-4},
        activationCheckpointing=checkpointing,
        **(extra or {}),
    )
    pods = start(config, 1, layout.processes, entry)
    assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
    return pods


class Audit(NamedTuple):
    """All that a run can be compared by."""

    reports: Reports
    samples: list[list[int]]
    """Numbers of the samples of each batch (of the steps, then of the evaluation), in the order of the global batch."""
    parameters: dict[str, torch.Tensor]
    """In the end, whole."""


def audited(start: Starter, layout: Layout) -> Audit:
    pods = finished_pods(start, layout, entry="tests.trainer.faults:audit")
    folder = pods[0].folder
    parameters: dict[str, torch.Tensor] = {}
    for path in folder.glob("parameters-*.pt"):
        parameters |= torch.load(path)
    return Audit([*pods[0].reports, *pods[0].evaluations], samples_of(folder, layout), parameters)


def samples_of(folder: Path, layout: Layout) -> list[list[int]]:
    """What the data-parallel ranks have read, put together; all ranks of one must have read the same."""
    mesh = make_config(layout.processes, layout.parallelism, model=MODEL).mesh
    shares: dict[int, list[list[int]]] = {}
    for rank in range(layout.processes):
        at = mesh.coordinate(rank)
        if 0 < at.pipeline < mesh.pipeline - 1:
            continue  # in the middle of a pipeline nobody needs samples to train
        read = json.loads((folder / f"samples-{rank}.json").read_text())
        assert {(part, parts) for part, parts, _ in read} == {(at.context, mesh.context)}
        numbers = [sample for _, _, numbers in read for sample in numbers]
        size = 8 // mesh.data
        batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        assert shares.setdefault(mesh.data_index(rank), batches) == batches
    return [[n for share in batch for n in share] for batch in zip(*(shares[i] for i in sorted(shares)), strict=True)]


@pytest.fixture(scope="session")
def alone(start: Starter) -> Audit:
    return audited(start, Layout(1, {}))


@pytest.fixture(scope="session")
def one_process(alone: Audit) -> Reports:
    return alone.reports


@pytest.fixture(scope="session")
def alone_without_evaluation(start: Starter) -> Audit:
    return audited(start, Layout(1, {"pipeline": pipe(1, "ZBV")}))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layout_gives_the_losses_samples_and_parameters_of_one_process(
    start: Starter, alone: Audit, alone_without_evaluation: Audit, layout: Layout
) -> None:
    reference = alone if can_evaluate(layout) else alone_without_evaluation
    found = audited(start, layout)
    assert_equal(found.reports, reference.reports)
    assert found.samples == reference.samples
    assert found.parameters.keys() == reference.parameters.keys()
    for name, expected in reference.parameters.items():
        error = (found.parameters[name] - expected).norm() / expected.norm()
        assert error < TOLERANCE, name


@pytest.mark.parametrize("layout", [Layout(2, {"data": FSDP}), Layout(4, {"pipeline": pipe(2), "data": FSDP})], ids=str)
def test_table_notices_gradients_that_are_scaled_wrongly(start: Starter, one_process: Reports, layout: Layout) -> None:
    """The counter-example: FSDP with its own scaling, for losses that are means over a rank."""
    (pod,) = finished_pods(start, layout, entry="tests.trainer.faults:mean_instead_of_sum")
    with pytest.raises(AssertionError, match="loss"):
        assert_equal([*pod.reports, *pod.evaluations], one_process)


@pytest.mark.parametrize(
    "parallelism", [{"tensor": 2, "data": FSDP}, {"pipeline": pipe(2), "tensor": 2}, {"data": SERVER}], ids=str
)
@pytest.mark.parametrize("name", [name for name in OPTIMIZER_PARAMETERS if name not in ("adamw", "gd")])
def test_every_optimizer_is_exact_when_its_parameters_are_split(
    start: Starter, name: str, parallelism: dict[str, Any]
) -> None:
    own = OPTIMIZER_PARAMETERS[name]
    given: dict[str, Any] = {key: value for key, value in (("momentum", 0.9), ("eps", 1e-4)) if key in own}
    if name == "rmsprop":  # at the rate of the others its loss rises, and rounding errors grow with it
        given["learningRate"] = 0.001
    alone = run(start, Layout(1, {}), name=name, **given)
    tolerance = MUON_TOLERANCE if name == "muon" else TOLERANCE
    assert_equal(run(start, Layout(4, parallelism), name=name, **given), alone, tolerance)


DESCENT = (
    Layout(1, {}, 1),
    Layout(2, {}),
    Layout(3, {}, 4),
    Layout(2, {"data": SERVER}),
    Layout(4, {"data": FSDP}),
    Layout(2, {"tensor": 2}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)


@pytest.mark.parametrize("layout", DESCENT, ids=str)
def test_gradient_descent_takes_all_samples_in_each_step(start: Starter, tmp_path: Path, layout: Layout) -> None:
    """Of 41 samples no layout has equally many on each rank."""
    path = tmp_path / "text"
    path.write_text("".join(chr(97 + number * number % 23) for number in range(46 * 16 + 1)))

    def descend(layout: Layout) -> Reports:
        config = make_config(
            layout.processes,
            layout.parallelism,
            replace=True,
            model={"name": "gpt", "preset": "nano", "dim": 32, "ffnDim": 64, **MODEL},
            batch={"micro": layout.micro},
            stop={"epochs": STEPS},
            data={"source": "text", "path": str(path), "sequenceLength": 16, "heldOut": 0.1},
            optimizer={"name": "gd", "learningRate": 0.1},
        )
        pods = start(config, 1, layout.processes)
        assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
        return [*pods[0].reports, *pods[0].evaluations]

    reports = descend(layout)
    assert_equal(reports, descend(Layout(1, {})))
    assert reports[STEPS - 1]["loss"] < reports[0]["loss"]


RECOMPUTED = (
    Layout(1, {}),
    Layout(2, {}),
    Layout(4, {"tensor": 2, "data": FSDP}, 2),
    Layout(4, {"context": 2, "data": FSDP}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
    Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}),
)


@pytest.mark.parametrize("layout", RECOMPUTED, ids=str)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same(start: Starter, one_process: Reports, layout: Layout, mode: str) -> None:
    assert_equal(run(start, layout, mode), one_process)


def test_a_v_recomputes_whole_blocks(start: Starter, alone_without_evaluation: Audit) -> None:
    layout = Layout(2, {"pipeline": pipe(2, "ZBV")})
    assert_equal(run(start, layout, "full"), alone_without_evaluation.reports)


HALF = (
    Layout(1, {}),
    Layout(2, {}),
    Layout(4, {"data": FSDP}, 1),
    Layout(2, {"data": SERVER}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"context": 2}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)


@pytest.mark.parametrize("layout", HALF, ids=str)
def test_bfloat16_changes_the_losses_by_its_rounding_only(start: Starter, one_process: Reports, layout: Layout) -> None:
    """Its relative rounding error is 4e-3, and a loss averages many."""
    reports = run(start, layout, extra={"precision": "bfloat16"})
    assert_equal(reports, one_process, 5e-3)
    with pytest.raises(AssertionError):
        assert_equal(reports, one_process)


@pytest.mark.parametrize(
    "layout", [Layout(1, {}), Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)})], ids=str
)
def test_compiled_blocks_give_the_same_losses(start: Starter, one_process: Reports, layout: Layout) -> None:
    assert_equal(run(start, layout, extra={"compile": True}), one_process)


def assert_equal(reports: Reports, reference: Reports, tolerance: float = TOLERANCE) -> None:
    assert [r["step"] for r in reports[:STEPS]] == list(range(1, STEPS + 1))
    for key in ("loss", "gradNorm"):
        ours, theirs = [r[key] for r in reports[:STEPS]], [r[key] for r in reference[:STEPS]]
        assert ours == pytest.approx(theirs, rel=tolerance), key
    assert len(reports) == len(reference)
    for evaluation, expected in zip(reports[STEPS:], reference[STEPS:], strict=True):
        assert evaluation == pytest.approx(expected, rel=tolerance)
