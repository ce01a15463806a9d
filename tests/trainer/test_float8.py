"""Products in float8, rounded as on a GPU but computed on the CPU."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.layouts import FSDP, Layout, References, configure
from tests.trainer.pods import Starter, finish
from tests.trainer.test_compile import assert_graphs
from tests.trainer.test_model import make_model
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.models.llama.parallelize import LlamaPlan
from trainyard_trainer.parallel.float8 import apply_float8
from trainyard_trainer.runtime.errors import ConfigError

TOKENS = torch.randint(0, 32, (2, 16), generator=torch.Generator().manual_seed(0))


def make(ffn_dim: int = 96) -> Llama:
    return make_model(dim=64, ffn_dim=ffn_dim, heads=4, kv_heads=2, sequence_length=16).bfloat16()


def outputs(model: Llama) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of one matrix."""
    model.zero_grad()
    logits = model(TOKENS)
    logits.float().square().sum().backward()
    gradient = model.get_parameter("blocks.0.feed_forward.up.weight").grad
    assert gradient is not None
    return logits.detach().float(), gradient.float().clone()


def test_results_are_those_of_bfloat16_up_to_the_rounding_of_float8() -> None:
    expected, model = outputs(make()), make()
    names = [name for name, _ in model.named_parameters()]
    apply_float8(LlamaPlan(model), torch.device("cpu"))
    assert [name for name, _ in model.named_parameters()] == names
    for found, other in zip(outputs(model), expected, strict=True):
        assert 1e-3 < (found - other).norm() / other.norm() < 0.1


def test_compiled_blocks_are_one_graph_with_the_same_results() -> None:
    model = make()
    apply_float8(LlamaPlan(model), torch.device("cpu"))
    expected = outputs(model)
    for block in LlamaPlan(model).layers():
        block.compile(fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings(action="ignore"):  # of torch, which looks at gradients of inputs while it traces
        compiled = outputs(model)
    for found, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(found, other)


def test_layers_of_other_sizes_and_the_head_stay_as_they_are() -> None:
    model = make(ffn_dim=90)
    apply_float8(LlamaPlan(model), torch.device("cpu"))
    plain = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert plain == {"head", *(f"blocks.{i}.feed_forward.{name}" for i in (0, 1) for name in ("gate", "up", "down"))}


def test_a_gpu_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"spec\.trainer\.float8: NVIDIA A100 has no float8 products"):
        apply_float8(LlamaPlan(make()), torch.device("cuda", 0))


def test_sharded_and_compiled_model_trains(start: Starter, references: References) -> None:
    layout = Layout(2, {"data": FSDP})
    config = configure(layout, compile=True, precision="bfloat16", activationCheckpointing="selective")
    config = config.replace(trainer=config.trainer.replace(float8=True))
    (pod,) = start(config, 1, 2, entry="tests.trainer.compiled:count")
    assert finish([pod], 120) == [0], pod.stderr
    assert_graphs([pod], layout)
    expected = references(layout).reports
    for report, other in zip(pod.reports, expected, strict=False):
        assert report["loss"] == pytest.approx(other["loss"], rel=1e-2)
