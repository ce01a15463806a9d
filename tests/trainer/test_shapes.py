"""Published shapes (tied embeddings, norms of queries and keys, wide heads, scaled frequencies) on every layout."""

from typing import Any

import pytest

from tests.support.run_config import make_config
from tests.trainer.layouts import (
    FSDP,
    HSDP,
    SERVER,
    TOLERANCE,
    Layout,
    References,
    assert_equal,
    assert_same,
    extended,
    pipe,
    record,
    run,
)
from tests.trainer.pods import Starter
from trainyard_trainer.data.loading import load_samples
from trainyard_trainer.parallel.parallelize import parameter_count

QWEN3: dict[str, Any] = {
    "name": "llama",
    "heads": 4,
    "kvHeads": 2,
    "headDim": 16,
    "ropeTheta": 1e6,
    "normEps": 1e-6,
    "qkNorm": True,
    "tiedEmbeddings": True,
}
"""In the shape of a small Qwen 3; a head is twice as wide as dim / heads."""
LLAMA3: dict[str, Any] = {
    "heads": 4,
    "kvHeads": 2,
    "ropeTheta": 5e5,
    "ropeScaling": {"type": "llama3", "factor": 8, "originalLength": 8},
    "tiedEmbeddings": True,
}
"""In the shape of Llama 3.2."""
QWEN3_MOE: dict[str, Any] = {**QWEN3, "name": "moe", "tiedEmbeddings": False, "experts": 4, "expertsPerToken": 2}
CASES = (
    ("qwen3", QWEN3, Layout(4, {"data": HSDP}, 1)),
    ("qwen3", QWEN3, Layout(4, {"tensor": 2, "data": FSDP})),
    ("qwen3 untied", {**QWEN3, "tiedEmbeddings": False}, Layout(4, {"pipeline": pipe(2), "tensor": 2})),
    ("llama3", LLAMA3, Layout(2, {"context": 2})),
    ("qwen3 moe", QWEN3_MOE, Layout(2, {"expert": 2})),
)
MORE_CASES = (
    ("qwen3", QWEN3, Layout(2, {})),
    ("qwen3", QWEN3, Layout(2, {"data": FSDP})),
    ("qwen3", QWEN3, Layout(2, {"data": SERVER})),
    ("qwen3", QWEN3, Layout(2, {"tensor": 2}, 2)),
    ("qwen3", QWEN3, Layout(4, {"context": 2, "data": FSDP})),
    ("llama3", LLAMA3, Layout(4, {"tensor": 2, "data": FSDP})),
    ("qwen3 moe", QWEN3_MOE, Layout(4, {"context": 2, "data": FSDP})),
)


@pytest.mark.parametrize(
    ("name", "model", "layout"),
    [*CASES, *extended(MORE_CASES)],
    ids=[f"{name} {layout!s}" for name, _, layout in (*CASES, *MORE_CASES)],
)
def test_layout_gives_the_losses_samples_and_parameters_of_one_process(
    start: Starter, references: References, name: str, model: dict[str, Any], layout: Layout
) -> None:
    found = record(start, layout, model=model)
    assert_same(found, references(layout, name, model=model))
    assert ("head.weight" in found.parameters) == (not model["tiedEmbeddings"])


@pytest.mark.parametrize("model", [QWEN3, LLAMA3, QWEN3_MOE])
def test_parameters_are_those_of_the_trainer(model: dict[str, Any]) -> None:
    config = make_config(model=model)
    assert config.family.parameters(config.model) == parameter_count(config, load_samples(config))


@pytest.mark.parametrize("mode", ["selective", *extended(["full"])])
def test_recomputed_activations_are_the_same(start: Starter, references: References, mode: str) -> None:
    layout = Layout(4, {"tensor": 2, "data": FSDP}, 2)
    found = record(start, layout, model=QWEN3, activationCheckpointing=mode)
    assert_same(found, references(layout, "qwen3", model=QWEN3))


@pytest.mark.parametrize(
    "change", [*extended([{"compile": True}]), {"precision": "bfloat16"}], ids=["compiled", "bfloat16"]
)
def test_a_tied_head_is_compiled_and_computed_in_bfloat16(
    start: Starter, references: References, change: dict[str, Any]
) -> None:
    layout = Layout(2, {"data": FSDP})
    reports = run(start, layout, model=QWEN3, **change)
    tolerance = TOLERANCE if "compile" in change else 5e-3
    assert_equal(reports, references(layout, "qwen3", model=QWEN3).reports, tolerance)
