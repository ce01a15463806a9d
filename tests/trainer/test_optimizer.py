"""The learning rate against its closed form, the update of each optimizer, weight decay and gradient clipping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.trainer.test_model import sizes
from trainyard.optimizers import OPTIMIZERS, OptimizerName
from trainyard.resource.optimization import Optimizer, Schedule
from trainyard_trainer.data.timeline import Timeline
from trainyard_trainer.models.llama.model import Llama
from trainyard_trainer.optim.builders import BUILDERS
from trainyard_trainer.optim.gradient import clip_gradient, gradient_norm
from trainyard_trainer.optim.learning_rate import learning_rate_factor
from trainyard_trainer.optim.optimizer import build_optimizers


def test_cosine_schedule_with_warm_up() -> None:
    schedule = Schedule(warmup_steps=4, min_ratio=0.2)
    factors = [learning_rate_factor(schedule, step, 12) for step in range(1, 13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[7] == pytest.approx(0.6)  # half way down
    assert factors[11] == pytest.approx(0.2)
    assert factors[5] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0, 1))
def test_learning_rate_rises_then_falls(total: int, warmup: int, min_ratio: float) -> None:
    warmup = min(warmup, total)
    schedule = Schedule(warmup_steps=warmup, min_ratio=min_ratio)
    factors = [learning_rate_factor(schedule, step, total) for step in range(1, total + 1)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if warmup < total:
        assert factors[-1] == pytest.approx(min_ratio)


def test_weight_decay_does_not_apply_to_norms() -> None:
    model = Llama(sizes())
    optimizer = build_optimizers(
        model.named_parameters(), Optimizer(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6, learning_rate=0.5)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = optimizer.parts[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all("norm" in names[id(p)] for p in spared["params"])
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (0.5, (0.8, 0.9), 1e-6)


def test_adamw_follows_the_published_rule() -> None:
    """Loshchilov and Hutter (2019), algorithm 2, in plain arithmetic."""
    layer = nn.Linear(2, 1, bias=False)
    start, gradient = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, -0.7]])
    config = Optimizer(learning_rate=0.1, weight_decay=0.2)
    optimizer = build_optimizers(layer.named_parameters(), config)
    with torch.no_grad():
        layer.weight.copy_(start)
    first = second = torch.zeros(1, 2)
    expected = start
    for step in (1, 2):
        layer.weight.grad = gradient.clone()
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        expected = expected - 0.1 * (update + 0.2 * expected)
        torch.testing.assert_close(layer.weight.data, expected)


def test_every_optimizer_has_a_builder() -> None:
    assert list(BUILDERS) == list(OPTIMIZERS)


def test_an_optimizer_without_a_builder_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    unknown = Optimizer.model_construct(name="lion")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"spec\.trainer\.optimizer\.name: lion has no builder"):
        build_optimizers(layer.named_parameters(), unknown)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_reach_the_optimizer(name: OptimizerName) -> None:
    given = {"momentum": 0.5, "nesterov": True, "alpha": 0.7, "betas": (0.6, 0.8), "eps": 1e-3, "weightDecay": 0.3}
    own = {key: given[key] for key in OPTIMIZERS[name].defaults}
    config = Optimizer.model_validate({"name": name, "learningRate": 0.5, **own})
    found: dict[str, object] = {}
    for part in build_optimizers(Llama(sizes()).named_parameters(), config).parts:
        found |= {key: value for key, value in part.param_groups[0].items() if key != "params"}
    torch_names = {"weightDecay": "weight_decay"}
    assert {key: found[torch_names.get(key, key)] for key in own} == own
    assert found["lr"] == 0.5


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = Llama(sizes())
    muon, adamw = build_optimizers(model.named_parameters(), Optimizer(name="muon")).parts
    names = {id(p): name for name, p in model.named_parameters()}
    inner = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert inner == {n for n in names.values() if n.startswith("blocks.") and "norm" not in n}
    assert inner | rest == set(names.values())


@pytest.mark.parametrize(("scale", "expected"), [(0.1, 0.5), (1.0, 2.0), (10.0, 2.0)])
def test_only_gradients_above_the_limit_are_scaled_down(scale: float, expected: float) -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = scale * torch.tensor([3.0, 0.0]), scale * torch.tensor([4.0])
    norm = gradient_norm(parameters, None)
    assert norm.item() == pytest.approx(5 * scale)
    clip_gradient(parameters, 2.0, norm)
    assert gradient_norm(parameters, None).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (8, 64), (64, 8)])
def test_muon_updates_have_the_size_of_those_of_adamw(shape: tuple[int, int]) -> None:
    """match_rms_adamw: the RMS of an update is 0.2 x learning rate for every shape (Liu et al., 2025, section 2.2)."""
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    config = Optimizer(name="muon", learning_rate=0.5, weight_decay=0.0)
    build_optimizers([("blocks.0.matrix", matrix)], config).step()
    assert matrix.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.5, rel=0.2)


def test_constant_linear_and_wsd_schedules() -> None:
    def factors(**schedule: object) -> list[float]:
        config = Schedule.model_validate({"warmupSteps": 2, "minRatio": 0.2, **schedule})
        return [round(learning_rate_factor(config, step, 10), 6) for step in range(1, 11)]

    assert factors(name="constant") == [0.5] + [1.0] * 9
    assert factors(name="linear") == [0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    assert factors(name="wsd", decaySteps=4) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert factors(name="wsd") == [0.5] + [1.0] * 8 + [0.2]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_change_of_the_batch_bends_no_schedule_that_counts_tokens(name: str) -> None:
    """At the same number of tokens the learning rate is the same, whatever the batch was."""
    config = Schedule.model_validate({"name": name, "warmupTokens": 160})
    small, large = Timeline(batch=1, tokens_per_sample=16), Timeline(batch=4, tokens_per_sample=16)
    expected = [learning_rate_factor(config, step, 160, small.tokens_at) for step in range(1, 161)]
    large.move(40, 40, 640, small.phases)
    found = [learning_rate_factor(config, step, 70, large.tokens_at) for step in range(1, 71)]
    assert found == expected[:40] + expected[43::4]


def test_warm_up_steps_stay_what_they_were_when_the_batch_changes_later() -> None:
    config = Schedule(warmup_steps=10)
    small, large = Timeline(batch=1, tokens_per_sample=16), Timeline(batch=4, tokens_per_sample=16)
    expected = [learning_rate_factor(config, step, 160, small.tokens_at) for step in range(1, 161)]
    large.move(40, 40, 640, small.phases)
    found = [learning_rate_factor(config, step, 70, large.tokens_at) for step in range(1, 71)]
    assert found == expected[:40] + expected[43::4]


@given(st.integers(2, 60), st.integers(0, 30), st.sampled_from(["cosine", "linear", "wsd"]))
def test_tokens_and_steps_measure_the_same_while_the_batch_stays(total: int, warmup: int, name: str) -> None:
    config = Schedule.model_validate({"name": name, "warmupSteps": min(warmup, total)})
    config = config.replace(decay_steps=max(1, total // 3)) if name == "wsd" else config
    timeline = Timeline(batch=8, tokens_per_sample=16)
    for step in range(1, total + 1):
        by_tokens = learning_rate_factor(config, step, total, timeline.tokens_at)
        assert by_tokens == learning_rate_factor(config, step, total)
