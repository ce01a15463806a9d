"""A mixture of experts: the layer against plain loops, and the same losses and gradient norms on every layout."""

import json
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from tests.support.run_config import make_config
from tests.trainer.layouts import (
    FSDP,
    HSDP,
    MUON_TOLERANCE,
    STEPS,
    TOLERANCE,
    Layout,
    References,
    RunRecord,
    assert_equal,
    assert_same,
    extended,
    finished_pods,
    pipe,
    record,
    run,
)
from tests.trainer.pods import Starter
from trainyard.models.moe import MoeConfig
from trainyard.optimizers import OPTIMIZERS, OptimizerName
from trainyard_trainer.metrics.expert_loads import ExpertLoads
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.models.moe.model import MixtureOfExperts, Moe
from trainyard_trainer.parallel.parallelize import shard_dim
from trainyard_trainer.runtime.world import World

B, T, D, F, X, C = 3, 8, 16, 24, 5, 2


def sizes(**changes: Any) -> MoeConfig:
    decoder = {"dim": 64, "layers": 8, "heads": 4, "kv_heads": 2, "ffn_dim": 128, "vocab_size": 32}
    experts = {"experts": 4, "experts_per_token": 2, "balance_loss_weight": 0.01}
    return MoeConfig(**{**decoder, "sequence_length": 8, **experts, **changes})


def make_layer(balance: float = 0.0, skew: float = 0.0) -> MixtureOfExperts:
    """A layer whose first experts are the more probable, the larger the skew."""
    generator = torch.Generator().manual_seed(0)
    layer = MixtureOfExperts(sizes(dim=D, ffn_dim=F, experts=X, experts_per_token=C, balance_loss_weight=balance))
    layer.balance.batch_tokens = B * T
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5, generator=generator)
        layer.router.weight += skew * torch.linspace(1, -1, X)[:, None]
    return layer


def make_input() -> Tensor:
    """Numbers around 1, so that a router's mean weight makes itself felt."""
    return 1 + torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))


def token_by_token(layer: MixtureOfExperts, x: Tensor) -> tuple[Tensor, Tensor, list[list[set[int]]]]:
    """What the layer should give, the probabilities [B, T, X], and the experts of each token."""
    weights = layer.experts
    outputs, probabilities, choices = [], [], []
    for token in x.flatten(0, 1):
        p = (layer.router.weight @ token).softmax(0)
        chosen = sorted(range(X), key=lambda i: -p[i].item())[:C]
        y = torch.zeros(D)
        for i in chosen:
            gate, up = token @ weights.gate[i], token @ weights.up[i]
            y = y + p[i] / sum(p[j] for j in chosen) * ((gate * gate.sigmoid() * up) @ weights.down[i])
        outputs.append(y)
        probabilities.append(p)
        choices.append(set(chosen))
    by_sequence = [choices[b * T : (b + 1) * T] for b in range(B)]
    return torch.stack(outputs).view(B, T, D), torch.stack(probabilities).view(B, T, X), by_sequence


def balance_loss(p_BTX: Tensor, choices: list[list[set[int]]]) -> Tensor:
    """Equations 17 to 20 of DeepSeek-V3's report, averaged over the sequences."""
    losses = []
    for p_TX, chosen in zip(p_BTX, choices, strict=True):
        f = [X / (C * T) * sum(i in experts for experts in chosen) for i in range(X)]
        losses.append(sum(f[i] * p_TX[:, i].mean() for i in range(X)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("balance", [0.0, 0.3])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_layer_is_what_a_loop_over_tokens_gives(skew: float, balance: float) -> None:
    layer, x = make_layer(balance, skew), make_input().requires_grad_()
    direction = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2))
    inputs = [x, *layer.parameters()]
    expected, p_BTX, choices = token_by_token(layer, x)
    loss = (expected * direction).sum() + balance * balance_loss(p_BTX, choices)
    gradients = torch.autograd.grad(loss, inputs)

    y = layer(x)
    torch.testing.assert_close(y, expected)
    for gradient, expected in zip(torch.autograd.grad((y * direction).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_most_experts_may_stay_without_tokens() -> None:
    layer = make_layer(skew=0.5)
    with torch.no_grad():
        layer.router.weight[:] = layer.router.weight.mean(1, keepdim=True)
    _, _, choices = token_by_token(layer, make_input())
    assert all(chosen == {0, 1} for sequence in choices for chosen in sequence)
    layer(make_input()).sum().backward()
    gradient = layer.experts.down.grad
    assert gradient is not None
    assert (gradient.abs().sum((1, 2)) > 0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(("balance", "evens_out"), [(0.0, False), (1.0, True)])
def test_balance_loss_evens_out_the_load(balance: float, evens_out: bool) -> None:
    def largest_load() -> float:
        """Of the most loaded expert, in parts of what it would have if all had the same."""
        chosen = layer.router(x).topk(C).indices
        return float(chosen.flatten().bincount(minlength=X).max() * X / chosen.numel())

    layer, x = make_layer(balance, skew=0.5), make_input()
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    before = largest_load()
    assert before > 2
    for _ in range(100):
        (layer(x) * 0).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (largest_load() < 1.5) == evens_out
    assert evens_out or largest_load() == before


def test_the_host_never_waits_for_the_device() -> None:
    """Tensors without values stand for those of a device: an operation that needs a value on the host raises."""
    layer = make_layer(balance=0.5)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(action="ignore"):
        layer(make_input()).sum().backward()
        with pytest.raises(DynamicOutputShapeException):
            torch.arange(3).repeat_interleave(torch.arange(3))


def test_ranks_with_experts_wait_once_per_layer_and_pass(start: Starter) -> None:
    layout = Layout(2, {"expert": 2})
    (pod,) = finished_pods(start, layout, "tests.trainer.faults:count_waits_for_experts", model=MODEL, data={})
    lines = [json.loads(line) for line in pod.stdout.splitlines()]
    # Two layers, and one micro-batch in each of the steps.
    assert [line["waits"] for line in lines if "waits" in line] == [2 * STEPS] * 2


def test_load_of_experts_is_measured() -> None:
    config = make_config(1, model={**MODEL, "experts": X, "expertsPerToken": C, "layers": 2})
    model = Moe(cast(MoeConfig, config.model))
    loads = ExpertLoads(config, World(0, 0, 1, 1, torch.device("cpu")), [model])
    assert loads.ratios() == [0.0, 0.0]
    first, second = model.mixtures()
    first.load.add(torch.tensor([4, 1, 2, 3, 0]))
    first.load.add(torch.tensor([6, 1, 1, 1, 1]))
    second.load.add(torch.tensor([3, 3, 3, 3, 3]))
    with torch.no_grad():
        second.load.add(torch.tensor([9, 0, 0, 0, 0]))
    assert loads.ratios() == pytest.approx([10 * X / 20, 1.0])
    assert loads.ratios() == [0.0, 0.0]


def test_reports_have_the_load_of_all_layers(start: Starter) -> None:
    layout = Layout(2, {"pipeline": pipe(2)})
    (pod,) = finished_pods(start, layout, "tests.trainer.faults:print_loads", model=MODEL)
    lines = [json.loads(line) for line in pod.stdout.splitlines()]
    loads = [line["loads"] for line in lines if "loads" in line]
    assert len(loads) == STEPS
    assert all(len(load) == 2 and all(1 <= ratio <= MODEL["experts"] for ratio in load) for load in loads)


def test_balance_loss_is_no_part_of_what_is_computed() -> None:
    torch.testing.assert_close(make_layer(5.0)(make_input()), make_layer(0.0)(make_input()), rtol=0, atol=0)


def test_parameters_and_their_initial_spread() -> None:
    model = Moe(sizes())
    initialize(model, 0, model.initial)
    layer = dict(model.mixtures()[3].named_parameters())
    shapes = {name: tuple(p.shape) for name, p in layer.items()}
    inward, outward = (4, 64, 128), (4, 128, 64)
    assert shapes == {
        "router.weight": (4, 64),
        "experts.gate": inward,
        "experts.up": inward,
        "experts.down": outward,
    }
    for name, parameter in layer.items():
        expected = 0.02 / 4 if name == "experts.down" else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.1)


MODEL: dict[str, Any] = {
    "name": "moe",
    "heads": 8,
    "kvHeads": 4,
    "ffnDim": 32,
    "experts": 8,
    "expertsPerToken": 2,
    "balanceLossWeight": 1.0,
}

LAYOUTS = (
    Layout(2, {"data": FSDP}),
    Layout(2, {"context": 2}),
    Layout(2, {"pipeline": pipe(2)}),
    Layout(2, {"expert": 2}),
    Layout(4, {"expert": 2, "data": FSDP}, 1),
    Layout(4, {"expert": 2, "context": 2}, 2),
    Layout(4, {"expert": 2, "pipeline": pipe(2, "Interleaved1F1B")}),
)
MORE_LAYOUTS = (
    Layout(1, {}, 1),
    Layout(2, {}),
    Layout(4, {"data": HSDP}),
    Layout(4, {"expert": 4}, 1),
    Layout(4, {"expert": 2}),
    Layout(4, {"expert": 2, "pipeline": pipe(2)}),
    Layout(4, {"expert": 2, "pipeline": pipe(2, "GPipe")}),
    Layout(4, {"expert": 2, "pipeline": pipe(2, "ZBV")}),
    Layout(8, {"expert": 2, "data": HSDP}),
    Layout(8, {"expert": 2, "context": 2, "data": FSDP}),
    Layout(8, {"expert": 2, "pipeline": pipe(2), "data": FSDP}),
    Layout(8, {"expert": 2, "context": 2, "pipeline": pipe(2)}),
)


@pytest.fixture(scope="session")
def reference(references: References) -> Callable[[Layout], RunRecord]:
    return lambda layout: references(layout, "moe", model=MODEL)


Reference = Callable[[Layout], RunRecord]


@pytest.mark.parametrize("layout", [*LAYOUTS, *extended(MORE_LAYOUTS)], ids=str)
def test_layout_gives_the_losses_samples_and_parameters_of_one_process(
    start: Starter, reference: Reference, layout: Layout
) -> None:
    assert_same(record(start, layout, model=MODEL), reference(layout))


@pytest.mark.parametrize(
    ("mode", "layout"),
    [
        ("full", Layout(4, {"expert": 2, "data": FSDP})),
        ("selective", Layout(2, {"expert": 2})),
        *extended(
            [
                ("full", Layout(1, {})),
                ("full", Layout(2, {"expert": 2})),
                ("full", Layout(4, {"expert": 2, "pipeline": pipe(2)})),
                ("selective", Layout(4, {"expert": 2, "context": 2})),
            ]
        ),
    ],
    ids=str,
)
def test_recomputed_activations_are_the_same(
    start: Starter, reference: Reference, mode: Literal["selective", "full"], layout: Layout
) -> None:
    assert_equal(run(start, layout, model=MODEL, activationCheckpointing=mode), reference(layout).reports)


@pytest.mark.parametrize(
    "name", ["muon", *extended(name for name in OPTIMIZERS if name not in ("adamw", "gd", "muon"))]
)
def test_every_optimizer_is_exact_when_experts_are_split(
    start: Starter, references: References, name: OptimizerName
) -> None:
    own = OPTIMIZERS[name].defaults
    given: dict[str, Any] = {key: value for key, value in (("momentum", 0.9), ("eps", 1e-4)) if key in own}
    given["learningRate"] = 0.001  # with larger steps, rounding decides which experts some tokens choose
    optimizer = {"name": name, **given}
    layout = Layout(4, {"expert": 2, "data": FSDP})
    expected = references(layout, f"moe with {name}", model=MODEL, optimizer=optimizer).reports
    tolerance = MUON_TOLERANCE if name == "muon" else TOLERANCE
    assert_equal(run(start, layout, model=MODEL, optimizer=optimizer), expected, tolerance)


def test_ranks_without_tokens_take_part(start: Starter) -> None:
    """While all tokens choose the same experts, one rank has all of the work."""
    entry = "tests.trainer.faults:no_preference"
    alone = run(start, Layout(1, {}), entry=entry, model=MODEL)
    assert_equal(run(start, Layout(2, {"expert": 2}), entry=entry, model=MODEL), alone)


@pytest.mark.parametrize(
    ("fault", "layout"),
    [
        ("average_expert_gradients", Layout(2, {"expert": 2})),
        ("balance_parts_of_sequences", Layout(2, {"context": 2})),
    ],
    ids=str,
)
def test_a_fault_is_noticed(start: Starter, fault: str, layout: Layout) -> None:
    """In a deeper model and after more steps, since the errors grow with both."""
    settings: dict[str, Any] = {"model": {**MODEL, "layers": 4}, "stop": {"steps": 5}}
    faulty = run(start, layout, entry=f"tests.trainer.faults:{fault}", **settings)
    alone = run(start, Layout(1, {}), **settings)
    norms, expected = ([r["gradNorm"] for r in reports[:5]] for reports in (faulty, alone))
    assert norms != pytest.approx(expected, rel=100 * TOLERANCE)


@pytest.mark.parametrize(
    "layout",
    [Layout(2, {"expert": 2}), *extended([Layout(1, {}), Layout(4, {"expert": 2, "data": FSDP})])],
    ids=str,
)
def test_bfloat16_changes_the_losses_by_its_rounding_only(start: Starter, reference: Reference, layout: Layout) -> None:
    reports, expected = run(start, layout, model=MODEL, precision="bfloat16"), reference(layout).reports
    for report, exact in zip(reports[:STEPS], expected[:STEPS], strict=True):
        assert report["loss"] == pytest.approx(exact["loss"], rel=2e-2), "a few tokens choose another expert"
    with pytest.raises(AssertionError):
        assert_equal(reports, expected)


@pytest.mark.parametrize(("experts", "ranks", "dim"), [(8, 2, 0), (2, 2, 0), (2, 4, 1), (3, 2, 1)])
def test_few_experts_are_sharded_through_their_matrices(experts: int, ranks: int, dim: int) -> None:
    assert shard_dim(torch.Size((experts, 8, 16)), ranks) == dim
    assert shard_dim(torch.Size((3, 16)), ranks) == 0
