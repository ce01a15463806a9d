"""Compiled blocks: each layout gives the results of one process without compilation, and a block is one graph."""

import json

import pytest
import torch
from torch._inductor import config

from tests.trainer.layouts import (
    FSDP,
    HSDP,
    SERVER,
    Layout,
    References,
    assert_equal,
    configure,
    extended,
    finished_pods,
    pipe,
    run,
)
from tests.trainer.pods import Pod, Starter, finish
from trainyard_trainer.parallel.compilation import overlap_collectives
from trainyard_trainer.runtime.errors import ConfigError

COUNT = "tests.trainer.compiled:count"
CASES = (
    ("full", Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")})),
    ("selective", Layout(2, {})),
)
MORE_CASES = (
    ("none", Layout(4, {"tensor": 2, "data": FSDP}, 2)),
    ("selective", Layout(4, {"context": 2, "tensor": 2})),
    ("none", Layout(1, {}, 1)),
    ("none", Layout(2, {"data": SERVER})),
    ("selective", Layout(4, {"context": 2, "data": FSDP}, 2)),
    ("selective", Layout(4, {"pipeline": pipe(2), "tensor": 2})),
    ("full", Layout(4, {"data": HSDP})),
    ("full", Layout(2, {"tensor": 2})),
)
"""Layouts of `make test-all`; each of `CASES` represents some of them."""


def compiled(pods: list[Pod]) -> list[dict[str, int]]:
    """What each rank says of its graphs."""
    lines = [json.loads(line) for pod in pods for line in pod.stdout.splitlines()]
    return [line["compiled"] for line in lines if "compiled" in line]


def assert_graphs(pods: list[Pod], layout: Layout) -> None:
    """Blocks are one graph in the steps and another one, without gradients, in the evaluation; the loss is one."""
    with_loss = layout.processes // layout.parallelism.get("pipeline", {"stages": 1})["stages"]
    expected = [2] * (layout.processes - with_loss) + [3] * with_loss
    found = compiled(pods)
    assert sorted(rank["graphs"] for rank in found) == expected
    assert not any(rank["breaks"] for rank in found)


@pytest.mark.parametrize(("mode", "layout"), [*CASES, *extended(MORE_CASES)], ids=str)
def test_all_blocks_of_all_steps_are_one_graph(
    start: Starter, references: References, mode: str, layout: Layout
) -> None:
    """Train with compiled blocks, and compare the losses with those of one process, and the number of graphs."""
    pods = finished_pods(start, layout, COUNT, compile=True, activationCheckpointing=mode)
    assert_equal([*pods[0].reports, *pods[0].evaluations], references(layout).reports)
    assert_graphs(pods, layout)


# Extended: only another release of torch changes its outcome.
@pytest.mark.extended
def test_blocks_need_inputs_without_pending_collectives(start: Starter) -> None:
    """The counter-example: the day it fails, torch compiles such blocks, and `compilation._wait` can go."""
    layout = Layout(2, {"tensor": 2})
    pods = start(configure(layout, compile=True), 1, layout.processes, "tests.trainer.compiled:pending_inputs")
    assert finish(pods, 120) != [0]
    assert "object has no attribute '_local_tensor'" in pods[0].stderr


@pytest.mark.parametrize(
    "layout", [Layout(1, {}), *extended([Layout(2, {"tensor": 2}), Layout(2, {"pipeline": pipe(2)})])], ids=str
)
def test_generated_code_gives_the_same_losses(start: Starter, references: References, layout: Layout) -> None:
    reports = run(start, layout, compile=True, activationCheckpointing="selective")
    assert_equal(reports, references(layout).reports)


def test_asynchronous_tensor_parallelism_is_the_compilers() -> None:
    """What the compiler makes of it needs GPUs; here it must have the option, and a CPU must be refused."""
    with config.patch(_micro_pipeline_tp=False):
        with pytest.raises(ConfigError, match=r"spec\.parallelism\.asyncTensor: needs GPUs"):
            overlap_collectives(torch.device("cpu"))
        overlap_collectives(torch.device("cuda", 0))
        assert config._micro_pipeline_tp
    assert not config._micro_pipeline_tp
