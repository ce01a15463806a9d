"""Every layout of the ranks gives the same losses and gradient norms as one process: the table of what is exact."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.layouts import (
    FSDP,
    HSDP,
    MUON_TOLERANCE,
    SERVER,
    STEPS,
    TOLERANCE,
    Audit,
    Layout,
    Reports,
    assert_equal,
    assert_same,
    audited,
    can_evaluate,
    pipe,
    run,
    transformer,
)
from tests.trainer.pods import Starter, finish, make_config
from trainyard.optimizers import OPTIMIZERS

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
    assert_same(audited(start, layout), reference)


@pytest.mark.parametrize("layout", [Layout(2, {"data": FSDP}), Layout(4, {"pipeline": pipe(2), "data": FSDP})], ids=str)
def test_table_notices_gradients_that_are_scaled_wrongly(start: Starter, one_process: Reports, layout: Layout) -> None:
    """The counter-example: FSDP with its own scaling, for losses that are means over a rank."""
    reports = run(start, layout, entry="tests.trainer.faults:mean_instead_of_sum")
    with pytest.raises(AssertionError, match="loss"):
        assert_equal(reports, one_process)


@pytest.mark.parametrize(
    "parallelism", [{"tensor": 2, "data": FSDP}, {"pipeline": pipe(2), "tensor": 2}, {"data": SERVER}], ids=str
)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("adamw", "gd")])
def test_every_optimizer_is_exact_when_its_parameters_are_split(
    start: Starter, name: str, parallelism: dict[str, Any]
) -> None:
    own = OPTIMIZERS[name].defaults
    given: dict[str, Any] = {key: value for key, value in (("momentum", 0.9), ("eps", 1e-4)) if key in own}
    if name == "rmsprop":  # at the rate of the others its loss rises, and rounding errors grow with it
        given["learningRate"] = 0.001
    alone = run(start, Layout(1, {}), optimizer={"name": name, **given})
    tolerance = MUON_TOLERANCE if name == "muon" else TOLERANCE
    assert_equal(run(start, Layout(4, parallelism), optimizer={"name": name, **given}), alone, tolerance)


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
            model={"name": "llama", "preset": "nano", "dim": 32, "ffnDim": 64, **transformer},
            batch={"micro": layout.micro},
            stop={"epochs": STEPS},
            data={"source": "text", "path": str(path), "sequenceLength": 16, "evalFraction": 0.1},
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
    assert_equal(run(start, layout, activationCheckpointing=mode), one_process)


def test_a_v_recomputes_whole_blocks(start: Starter, alone_without_evaluation: Audit) -> None:
    layout = Layout(2, {"pipeline": pipe(2, "ZBV")})
    assert_equal(run(start, layout, activationCheckpointing="full"), alone_without_evaluation.reports)


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
    reports = run(start, layout, precision="bfloat16")
    assert_equal(reports, one_process, 5e-3)
    with pytest.raises(AssertionError):
        assert_equal(reports, one_process)


@pytest.mark.parametrize(
    "layout", [Layout(1, {}), Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)})], ids=str
)
def test_compiled_blocks_give_the_same_losses(start: Starter, one_process: Reports, layout: Layout) -> None:
    assert_equal(run(start, layout, compile=True), one_process)
