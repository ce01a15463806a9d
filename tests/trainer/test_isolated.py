"""Documents that share a sample are computed as if each were alone, on every layout."""

from typing import Any

import pytest
import torch

from tests.trainer.layouts import FSDP, HSDP, Layout, assert_equal, assert_same, extended, pipe, record, run
from tests.trainer.pods import Starter
from trainyard.models.llama import LlamaConfig
from trainyard.models.moe import MoeConfig
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.llama.attention_mask import document_mask
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.moe.model import Moe

SIZES = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 48, "vocab_size": 64, "sequence_length": 24}
LENGTHS = ((5, 1, 11, 7), (24,), (1, 22, 1))


def documents_of(lengths: tuple[int, ...]) -> list[int]:
    return [number for number, length in enumerate(lengths) for _ in range(length)]


def small_model(family: str) -> Llama:
    model = (
        Llama(LlamaConfig(**SIZES))
        if family == "llama"
        else Moe(MoeConfig(**SIZES, experts=4, experts_per_token=2, balance_loss_weight=0.0))
    )
    initialize(model, 0, model.initial)
    return model


@pytest.mark.parametrize("family", ["llama", "moe"])
def test_logits_are_those_of_each_document_alone(family: str) -> None:
    """Rotary attention depends on differences of positions only, so that positions may continue."""
    model = small_model(family)
    ids = torch.randint(64, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(1))
    packed = model(ids, torch.tensor([documents_of(each) for each in LENGTHS], dtype=torch.int32))
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            alone = model(ids[row : row + 1, start : start + length])
            torch.testing.assert_close(packed[row : row + 1, start : start + length], alone, rtol=1e-5, atol=1e-5)
            start += length
    assert not torch.allclose(packed[0], model(ids)[0], atol=1e-3)
    torch.testing.assert_close(packed[1], model(ids)[1], rtol=1e-5, atol=1e-5)


def test_gradients_do_not_cross_documents() -> None:
    model = small_model("llama")
    ids = torch.arange(24).view(1, 24)
    model(ids, torch.tensor([documents_of((10, 14))], dtype=torch.int32))[0, 10:].square().sum().backward()
    assert model.embed is not None
    assert model.embed.weight.grad is not None
    assert model.embed.weight.grad[:10].abs().max() == 0
    assert model.embed.weight.grad[10:24].abs().min() > 0


def test_the_mask_of_a_cpu() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1]], dtype=torch.int32))
    assert mask.tolist() == [[[[True, False, False], [True, True, False], [False, False, True]]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return data whose documents have 3 to 30 bytes, so that a sample of 16 holds several."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(300):
        letters = "".join(chr(97 + (number * number + i * i * 7) % 26) for i in range(3 + number * 7 % 28))
        (folder / f"{number:03}").write_text(letters)
    return {"source": "text", "path": str(folder), "documents": "isolated", "sequenceLength": 16, "evalFraction": 0.1}


LAYOUTS = (
    Layout(2, {"data": FSDP}, 1),
    Layout(4, {"tensor": 2, "context": 2}),
    Layout(3, {"pipeline": pipe(3)}, 1),
    Layout(4, {"pipeline": pipe(2), "data": FSDP}),
)
MORE_LAYOUTS = (
    Layout(2, {}),
    Layout(4, {"data": HSDP}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"context": 2}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"pipeline": pipe(2, "Interleaved1F1B")}),
)


@pytest.fixture(scope="module")
def alone(start: Starter, data: dict[str, Any]) -> Any:
    """Runs on one process by the number of layers."""
    records: dict[int, Any] = {}

    def get(layout: Layout) -> Any:
        if layout.layers not in records:
            model = {"heads": 8, "kvHeads": 4, "layers": layout.layers}
            records[layout.layers] = record(start, Layout(1, {}), model=model, data=data)
        return records[layout.layers]

    return get


@pytest.mark.parametrize("layout", [*LAYOUTS, *extended(MORE_LAYOUTS)], ids=str)
def test_isolated_documents_are_exact_on_every_layout(
    start: Starter, data: dict[str, Any], alone: Any, layout: Layout
) -> None:
    if layout.processes == 3:
        assert_equal(
            run(start, layout, data=data, batch={"global": 9, "micro": 1}),
            run(start, Layout(1, {}), data=data, batch={"global": 9}, model={"layers": 3, "heads": 8, "kvHeads": 4}),
        )
        return
    assert_same(record(start, layout, data=data), alone(layout))


def test_isolation_changes_the_losses(start: Starter, data: dict[str, Any], alone: Any) -> None:
    layout = Layout(1, {})
    with pytest.raises(AssertionError):
        assert_equal(run(start, layout, data={**data, "documents": "separated"}), alone(layout).reports)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_blocks_have_the_same_mask(start: Starter, data: dict[str, Any], alone: Any, mode: str) -> None:
    layout = Layout(1, {})
    assert_equal(run(start, layout, data=data, activationCheckpointing=mode), alone(layout).reports)


@pytest.mark.extended  # test_compiled_blocks_give_the_same_losses represents it: the mask is one more argument
def test_compiled_blocks_have_the_same_mask(start: Starter, data: dict[str, Any], alone: Any) -> None:
    layout = Layout(1, {})
    assert_equal(run(start, layout, data=data, compile=True), alone(layout).reports)
