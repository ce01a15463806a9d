"""Every layout of the ranks gives the same losses, gradient norms and parameters as one process."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import (
    FSDP,
    HSDP,
    LLAMA,
    MUON_TOLERANCE,
    SERVER,
    STEPS,
    TOLERANCE,
    Layout,
    References,
    Reports,
    assert_equal,
    assert_same,
    extended,
    pipe,
    record,
    run,
)
from tests.trainer.pods import Starter, finish
from trainyard.optimizers import OPTIMIZERS, OptimizerName

LAYOUTS = (
    Layout(1, {}, 1),
    Layout(2, {}),
    Layout(2, {"data": FSDP}),
    Layout(4, {"data": HSDP}),
    Layout(2, {"data": SERVER}),
    Layout(2, {"tensor": 2}, 2),
    Layout(4, {"tensor": 2, "data": FSDP}, 2),
    Layout(2, {"context": 2}),
    Layout(4, {"context": 2, "data": FSDP}),
    Layout(4, {"context": 2, "tensor": 2}),
    Layout(2, {"pipeline": pipe(2, "GPipe")}),
    Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
    Layout(4, {"pipeline": pipe(2, "ZBV"), "tensor": 2}),
    Layout(4, {"pipeline": pipe(2), "context": 2}),
)
# Each axis and each pair of their axes is in LAYOUTS, too.
MORE_LAYOUTS = (
    Layout(4, {}, 1),
    Layout(4, {"data": FSDP}, 1),
    Layout(1, {"data": SERVER}),
    Layout(4, {"data": SERVER}, 1),
    Layout(2, {"tensor": 2}),
    Layout(4, {"tensor": 4}),
    Layout(4, {"tensor": 2}),
    Layout(8, {"tensor": 2, "data": HSDP}),
    Layout(4, {"context": 4}, 4),
    Layout(4, {"context": 2}),
    Layout(8, {"context": 2, "data": HSDP}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"pipeline": pipe(2, "ZBV")}),
    Layout(4, {"pipeline": pipe(4)}),
    Layout(4, {"pipeline": pipe(2)}),
    Layout(4, {"pipeline": pipe(2, "Interleaved1F1B"), "data": FSDP}),
    Layout(4, {"pipeline": pipe(2), "tensor": 2}),
    Layout(8, {"pipeline": pipe(2), "context": 2, "tensor": 2}),
    Layout(8, {"pipeline": pipe(2, "Interleaved1F1B"), "context": 2, "data": FSDP}),
    Layout(8, {"context": 2, "tensor": 2, "data": FSDP}),
    Layout(8, {"pipeline": pipe(2), "tensor": 2}),
    Layout(8, {"pipeline": pipe(2), "tensor": 2, "data": FSDP}),
)


@pytest.mark.parametrize("layout", [*LAYOUTS, *extended(MORE_LAYOUTS)], ids=str)
def test_layout_gives_the_losses_samples_and_parameters_of_one_process(
    start: Starter, references: References, layout: Layout
) -> None:
    assert_same(record(start, layout), references(layout))


@pytest.mark.parametrize("layout", [Layout(2, {"data": FSDP}), Layout(4, {"pipeline": pipe(2), "data": FSDP})], ids=str)
def test_gradients_with_a_wrong_scale_are_noticed(start: Starter, references: References, layout: Layout) -> None:
    """The counter-example: FSDP with its own scaling, for losses that are means over a rank."""
    reports = run(start, layout, entry="tests.trainer.faults:mean_instead_of_sum")
    with pytest.raises(AssertionError, match="loss"):
        assert_equal(reports, references(layout).reports)


SPLIT = (Layout(4, {"tensor": 2, "data": FSDP}), Layout(4, {"data": SERVER}))
OTHERS = [name for name in OPTIMIZERS if name not in ("adamw", "gd")]


# Only Muon treats parameters by their name and shape, which a pipeline and a tensor group change together.
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, SPLIT[0]) for name in OTHERS),
        *extended((name, SPLIT[1]) for name in OTHERS),
        ("muon", Layout(4, {"pipeline": pipe(2), "tensor": 2})),
    ],
    ids=str,
)
def test_every_optimizer_is_exact_when_its_parameters_are_split(
    start: Starter, references: References, name: OptimizerName, layout: Layout
) -> None:
    own = OPTIMIZERS[name].defaults
    given: dict[str, Any] = {key: value for key, value in (("momentum", 0.9), ("eps", 1e-4)) if key in own}
    if name == "rmsprop":  # at the rate of the others its loss rises, and rounding errors grow with it
        given["learningRate"] = 0.001
    optimizer = {"name": name, **given}
    tolerance = MUON_TOLERANCE if name == "muon" else TOLERANCE
    reference = references(layout, name, optimizer=optimizer).reports
    assert_equal(run(start, layout, optimizer=optimizer), reference, tolerance)


DESCENT = (
    Layout(1, {}, 1),
    Layout(3, {}, 4),
    Layout(2, {"data": SERVER}),
)
MORE_DESCENT = (
    Layout(2, {}),
    Layout(4, {"data": FSDP}),
    Layout(2, {"tensor": 2}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)


Descend = Callable[[Layout], Reports]


@pytest.fixture(scope="module")
def descend(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Descend:
    """Runs gradient descent; of 41 samples no layout has equally many on each rank."""
    path = tmp_path_factory.mktemp("descent") / "text"
    path.write_text("".join(chr(97 + number * number % 23) for number in range(46 * 16 + 1)))

    def run_it(layout: Layout) -> Reports:
        config = make_config(
            layout.processes,
            layout.parallelism,
            replace=True,
            model={"name": "llama", "preset": "nano", "dim": 32, "ffnDim": 64, "layers": layout.layers, **LLAMA},
            batch={"micro": layout.micro},
            stop={"epochs": STEPS},
            data={"source": "text", "path": str(path), "sequenceLength": 16, "evalFraction": 0.1},
            optimizer={"name": "gd", "learningRate": 0.1},
        )
        pods = start(config, 1, layout.processes)
        assert set(finish(pods, 120)) == {0}, [pod.stderr for pod in pods]
        return [*pods[0].reports, *pods[0].evaluations]

    return run_it


@pytest.fixture(scope="module")
def descent(descend: Descend) -> Reports:
    return descend(Layout(1, {}))


@pytest.mark.parametrize("layout", [*DESCENT, *extended(MORE_DESCENT)], ids=str)
def test_gradient_descent_takes_all_samples_in_each_step(descend: Descend, descent: Reports, layout: Layout) -> None:
    reports = descend(layout)
    assert_equal(reports, descent)
    assert reports[STEPS - 1]["loss"] < reports[0]["loss"]


RECOMPUTED = (Layout(4, {"tensor": 2, "data": FSDP}, 2), Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}))
MORE_RECOMPUTED = (
    Layout(1, {}),
    Layout(2, {}),
    Layout(4, {"context": 2, "data": FSDP}),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)


@pytest.mark.parametrize("layout", [*RECOMPUTED, *extended(MORE_RECOMPUTED)], ids=str)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_activations_are_the_same(start: Starter, references: References, layout: Layout, mode: str) -> None:
    assert_equal(run(start, layout, activationCheckpointing=mode), references(layout).reports)


def test_zbv_recomputes_complete_blocks(start: Starter, references: References) -> None:
    layout = Layout(2, {"pipeline": pipe(2, "ZBV")})
    assert_equal(run(start, layout, activationCheckpointing="full"), references(layout).reports)


HALF = (Layout(2, {"tensor": 2}), Layout(4, {"pipeline": pipe(2), "data": FSDP}))
MORE_HALF = (
    Layout(1, {}),
    Layout(2, {}),
    Layout(4, {"data": FSDP}, 1),
    Layout(2, {"data": SERVER}),
    Layout(2, {"context": 2}),
)


@pytest.mark.parametrize("layout", [*HALF, *extended(MORE_HALF)], ids=str)
def test_bfloat16_changes_the_losses_by_its_rounding_only(
    start: Starter, references: References, layout: Layout
) -> None:
    """Its relative rounding error is 4e-3, and a loss averages many."""
    reports = run(start, layout, precision="bfloat16")
    assert_equal(reports, references(layout).reports, 5e-3)
    with pytest.raises(AssertionError):
        assert_equal(reports, references(layout).reports)
