"""Gradients of several micro-batches: added up in shards or complete, they are the same."""

from typing import Any

import pytest

from tests.trainer.layouts import FSDP, HSDP, Layout, References, assert_equal, configure, extended
from tests.trainer.pods import Starter, finish
from trainyard.config import MemoryUse

MOE = {"model": {"name": "moe", "experts": 4, "expertsPerToken": 2}}


@pytest.mark.parametrize("gradients", ["sharded", "complete"])
@pytest.mark.parametrize(
    ("layout", "trainer"),
    [
        (Layout(2, {"data": FSDP}, 1), {}),
        *extended([(Layout(4, {"data": HSDP}, 1), {}), (Layout(4, {"data": HSDP, "expert": 2}, 1), MOE)]),
    ],
    ids=str,
)
def test_losses_do_not_depend_on_how_gradients_are_added_up(
    start: Starter, references: References, layout: Layout, trainer: dict[str, Any], gradients: Any
) -> None:
    config = configure(layout, **trainer)
    assert config.accumulation > 1
    (pod,) = start(config.replace(memory_use=MemoryUse(gradients=gradients)), 1, layout.processes)
    assert finish([pod]) == [0], pod.stderr
    reference = references(layout, "accumulated moe" if trainer else "", **trainer)
    assert_equal([*pod.reports, *pod.evaluations], reference.reports)
