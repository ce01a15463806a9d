"""The model against plain formulas, its initial values, and the names of its parameters."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from trainyard.models.llama import LlamaConfig
from trainyard.models.moe import MoeConfig
from trainyard_trainer.models import FAMILIES
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.llama.model import Attention, Llama
from trainyard_trainer.models.llama.parallelize import LlamaPlan
from trainyard_trainer.models.llama.rotary import Rotary, rotate
from trainyard_trainer.models.moe.model import Moe
from trainyard_trainer.models.names import HuggingFaceNames
from trainyard_trainer.parallel.activation_checkpoint import apply_activation_checkpointing


def sizes(**changes: Any) -> LlamaConfig:
    default: dict[str, Any] = {
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn_dim": 24,
        "vocab_size": 32,
        "sequence_length": 8,
    }
    return LlamaConfig(**{**default, **changes})


def make_model(seed: int = 0, **changes: int) -> Llama:
    model = Llama(sizes(**changes))
    initialize(model, seed, model.initial)
    return model


def test_parameters_and_their_names() -> None:
    model = make_model()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    block = {
        "attention_norm.weight": (16,),
        "attention.q.weight": (16, 16),
        "attention.k.weight": (8, 16),
        "attention.v.weight": (8, 16),
        "attention.o.weight": (16, 16),
        "feed_forward_norm.weight": (16,),
        "feed_forward.gate.weight": (24, 16),
        "feed_forward.up.weight": (24, 16),
        "feed_forward.down.weight": (16, 24),
    }
    expected = {"embed.weight": (32, 16), "norm.weight": (16,), "head.weight": (32, 16)}
    expected |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    assert shapes == expected
    assert list(model.state_dict()) == list(shapes)


def tables(count: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions from 0 on."""
    rotary = Rotary(head_dim)
    rotary.set_positions(0, count, torch.device("cpu"))
    return rotary.cos_TE, rotary.sin_TE


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = tables(5, 8)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.tensor([[t * 10_000.0 ** (-2 * i / 8) for i in range(4)] for t in range(5)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        rotate(x, cos.double(), sin.double()), torch.cat((turned.real, turned.imag), -1), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_textbook_formula(kv_heads: int) -> None:
    torch.manual_seed(0)
    rotary = Rotary(4)
    rotary.set_positions(0, 8, torch.device("cpu"))
    attention = Attention(sizes(kv_heads=kv_heads), rotary)
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(attention(x), textbook_attention(attention, x, kv_heads, *tables(8, 4)))


def textbook_attention(attention: Attention, x: Tensor, kv_heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    outputs = []
    for head in range(4):
        shared = head * kv_heads // 4
        q = rotate(x @ attention.q.weight[head * 4 : head * 4 + 4].T, cos, sin)
        k = rotate(x @ attention.k.weight[shared * 4 : shared * 4 + 4].T, cos, sin)
        v = x @ attention.v.weight[shared * 4 : shared * 4 + 4].T
        scores = q @ k.transpose(1, 2) / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1) @ attention.o.weight.T


def test_no_position_sees_a_later_one() -> None:
    model = make_model()
    tokens = torch.randint(0, 32, (1, 8), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    for position in range(1, 8):
        changed = tokens.clone()
        changed[0, position:] = (changed[0, position:] + 1) % 32
        after = model(changed)
        torch.testing.assert_close(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


def test_shorter_inputs_are_prefixes() -> None:
    model = make_model()
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(model(tokens[:, :3]), model(tokens)[:, :3])


def test_initial_values_follow_names_alone() -> None:
    """Neither the order of the modules, nor what else the model has, nor the global generator matters."""
    model = make_model()
    torch.manual_seed(123)
    stage = Llama(sizes(), range(1, 2))
    initialize(stage, 0, stage.initial)
    shuffled = nn.Module()
    for name, child in reversed(list(Llama(sizes()).named_children())):
        shuffled.add_module(name, child)
    initialize(shuffled, 0, model.initial)
    for name, parameter in stage.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    for name, parameter in model.named_parameters():
        assert torch.equal(shuffled.get_parameter(name), parameter)


def test_initial_values_differ_by_name_and_seed() -> None:
    model, other = make_model(), make_model(seed=1)
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    flat = [p.flatten()[:100].tolist() for p in matrices.values()]
    assert len({tuple(values) for values in flat}) == len(flat)
    assert not any(torch.equal(p, other.get_parameter(name)) for name, p in matrices.items())


def test_initial_spread() -> None:
    model = make_model(dim=128, ffn_dim=256, layers=8)
    residual = 0.02 / math.sqrt(2 * 8)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            expected = residual if name.endswith(("attention.o.weight", "feed_forward.down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(parameter.mean().item()) < expected / 20


def test_checkpointing_keeps_less_the_more_it_computes_again() -> None:
    def kept(mode: Literal["none", "selective", "full"]) -> int:
        sizes_of: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes_of[tensor.data_ptr()] = tensor.numel()
            return tensor

        model = make_model(layers=4)
        apply_activation_checkpointing(model, LlamaPlan(model), mode)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.arange(8)[None].repeat(64, 1)).sum()
        return sum(sizes_of.values())

    assert kept("full") < kept("none") / 3


def named(family: str) -> dict[str, Tensor]:
    """The parameters of a small model of a family, by name."""
    model: nn.Module = Llama(sizes()) if family == "llama" else Moe(moe_sizes())
    return dict(model.named_parameters())


def names_of(family: str, **changes: Any) -> HuggingFaceNames:
    names = FAMILIES[family].hugging_face
    assert names is not None
    return names(sizes(**changes) if family == "llama" else moe_sizes(**changes))


def moe_sizes(**changes: Any) -> MoeConfig:
    return MoeConfig(
        **{**sizes(**changes).model_dump(), "name": "moe"}, experts=3, experts_per_token=2, balance_loss_weight=0.0
    )


@pytest.mark.parametrize("family", ["llama", "moe"])
def test_names_survive_the_way_to_hugging_face_and_back(family: str) -> None:
    names = names_of(family)
    there = {name: names.to_hugging_face(name, experts=3) for name in named(family)}
    everything = [other for others in there.values() for other in others]
    assert len(set(everything)) == len(everything)
    for name, others in there.items():
        back = [names.from_hugging_face(other) for other in others]
        assert back == ([(name, None)] if len(others) == 1 else [(name, expert) for expert in range(3)])


@pytest.mark.parametrize(
    ("family", "name", "others"),
    [
        ("llama", "embed.weight", ["model.embed_tokens.weight"]),
        ("llama", "blocks.1.attention.q.weight", ["model.layers.1.self_attn.q_proj.weight"]),
        ("llama", "blocks.0.feed_forward_norm.weight", ["model.layers.0.post_attention_layernorm.weight"]),
        ("llama", "blocks.0.feed_forward.down.weight", ["model.layers.0.mlp.down_proj.weight"]),
        ("moe", "blocks.1.feed_forward.router.weight", ["model.layers.1.block_sparse_moe.gate.weight"]),
        (
            "moe",
            "blocks.0.feed_forward.experts.up",
            [f"model.layers.0.block_sparse_moe.experts.{expert}.w3.weight" for expert in range(3)],
        ),
    ],
)
def test_names_in_hugging_face_checkpoints(family: str, name: str, others: list[str]) -> None:
    names = names_of(family)
    assert names.to_hugging_face(name, experts=3) == others


def test_an_unknown_name_is_an_error() -> None:
    names = names_of("llama")
    for unknown in ("bias", "blocks.0.attention.bias"):
        with pytest.raises(KeyError):
            names.to_hugging_face(unknown)
    with pytest.raises(KeyError):
        names.from_hugging_face("model.layers.0.block_sparse_moe.gate.weight")
