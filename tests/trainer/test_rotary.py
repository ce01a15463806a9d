"""Rotary positions: their tables stay in float32, whatever a layout computes in."""

import json

import pytest

from tests.trainer.layouts import FSDP, Layout, finished_pods, pipe
from tests.trainer.pods import Starter

HALF = (
    Layout(1, {}),
    Layout(2, {"data": FSDP}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"context": 2, "data": FSDP}),
    Layout(2, {"pipeline": pipe(2)}),
)


@pytest.mark.parametrize("layout", HALF, ids=str)
def test_tables_are_in_float32_where_blocks_compute_in_bfloat16(start: Starter, layout: Layout) -> None:
    """fully_shard casts the inputs of a block, so the tables must not be among them."""
    (pod,) = finished_pods(start, layout, "tests.trainer.model_spies:rotary_types", precision="bfloat16")
    for rank in range(layout.processes):
        found = json.loads((pod.folder / f"rotary-{rank}.json").read_text())
        assert found == [["torch.bfloat16", "torch.float32", "torch.float32"]]
