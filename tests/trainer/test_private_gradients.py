"""Private steps: which samples they draw, what bounds the gradient of a sample, and the noise that is added."""

import hashlib
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import Tensor, nn

from tests.trainer.private import KEY, LLAMA, private
from tests.trainer.test_batches import windows_of
from trainyard.config import RunConfig
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Batch, Samples
from trainyard_trainer.data.sampling import PoissonSampler
from trainyard_trainer.data.table import Table, load_table
from trainyard_trainer.models import lora
from trainyard_trainer.parallel.forward_backward import make_forward_backward
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.parallelize import build_model_parts, initialize_parts
from trainyard_trainer.parallel.passes import ForwardBackward
from trainyard_trainer.privacy import gradients as private_gradients
from trainyard_trainer.privacy.gradients import PrivateGradients, clip_factors
from trainyard_trainer.privacy.noise import BLOCK, noise_block
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.secret_words import secret_words
from trainyard_trainer.runtime.world import World

CPU = torch.device("cpu")


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, rank, size, size, CPU)


class Setup:
    """A model with its private passes, as one rank has them; the sum over ranks adds nothing."""

    def __init__(self, config: RunConfig, samples: Samples, rank: int = 0) -> None:
        here = world(rank, config.world_size)
        here.sum = lambda tensor: tensor  # type: ignore[method-assign]
        alone = private_alone(config)
        mesh = RankMesh(alone.mesh, world())
        self.model = build_model_parts(alone, mesh, samples, CPU)[0]
        initialize_parts([self.model], 3)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                # Where one matrix of an adapter is 0, as it is at first, the other has no gradient.
                if name.endswith(lora.B):
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        self.plain = deepcopy(self.model)
        """The same model without hooks."""
        self.batches = Batches(samples, config, here)
        self.batches.draw_privately(KEY)
        plain: ForwardBackward = make_forward_backward(alone, mesh, [self.model], CPU, self.batches, None)
        self.passes = PrivateGradients(config, here, self.model, plain)

    def gradient(self, step: int = 0, noise: float = 0.0) -> Tensor:
        """Return the gradient of a step, as one vector."""
        self.passes.begin(KEY, noise)
        self.loss, _ = self.passes.run(self.batches, step)
        return torch.cat(
            [parameter.grad.flatten() for parameter in self.model.parameters() if parameter.grad is not None]
        )


def private_alone(config: RunConfig) -> RunConfig:
    return config.replace(world_size=1, mesh=config.mesh.replace(replicate=1))


@pytest.fixture(scope="module")
def digits() -> Table:
    return load_table(private())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    ids = np.random.default_rng(0).integers(0, 256, 16 * 300 + 1)
    return windows_of(tmp_path_factory.mktemp("text") / "tokens.bin", ids)


def reference(setup: Setup, samples: Iterator[Batch], tokens: int, limit: float) -> tuple[Tensor, list[float]]:
    """Return the sum of the clipped gradients and the norm of each, from one backward pass of each sample alone."""
    parameters = [parameter for parameter in setup.plain.parameters() if parameter.requires_grad]
    total, norms = torch.zeros(()), []
    for batch in samples:
        logits = setup.plain(batch.inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), reduction="sum") / tokens
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        norms.append(gradient.norm().item())
        total = total + gradient * min(1.0, limit / norms[-1])
    return total, norms


def one_by_one(setup: Setup, samples: Samples, step: int) -> Iterator[Batch]:
    assert setup.batches._poisson is not None
    for number in setup.batches._poisson.batch(step):
        yield samples.read(np.array([number]), 0, 1)


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_secret_words_are_shake_of_key_purpose_step_and_block() -> None:
    content = KEY + b"noise" + (7).to_bytes(8, "little") + (3).to_bytes(8, "little")
    expected = np.frombuffer(hashlib.shake_256(content).digest(40), "<u8")
    assert secret_words(KEY, "noise", 7, 3, 5).tolist() == expected.tolist()
    assert secret_words(KEY, "noise", 7, 3, 2).tolist() == expected[:2].tolist()
    others = [(KEY[::-1], "noise", 7, 3), (KEY, "samples", 7, 3), (KEY, "noise", 8, 3), (KEY, "noise", 7, 4)]
    assert all(secret_words(*other, 1)[0] != expected[0] for other in others)


def test_the_noise_is_normal_and_its_blocks_are_independent() -> None:
    blocks = [noise_block(KEY, step, block) for step in range(2) for block in range(2)]
    together = np.concatenate(blocks)
    count = len(together)
    assert count == 4 * BLOCK
    assert abs(together.mean()) < 4 / math.sqrt(count)
    assert abs(together.var() - 1) < 4 * math.sqrt(2 / count)
    assert stats.kstest(together, "norm").pvalue > 0.01
    products = np.array(blocks) @ np.array(blocks).T / BLOCK
    correlations = products[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(BLOCK)
    neighbours = float(together[:-1] @ together[1:]) / count
    assert abs(neighbours) < 4 / math.sqrt(count)
    assert noise_block(KEY, 1, 0).tolist() == blocks[2].tolist()


# --- samples ----------------------------------------------------------------------------------------------------------


def test_each_sample_is_in_each_step_with_the_same_probability() -> None:
    sampler, steps = PoissonSampler(range(100, 600), 25, KEY), 4000
    batches = [sampler.batch(step) for step in range(steps)]
    sizes, rate = np.array([len(batch) for batch in batches]), 25 / 500
    assert all((np.diff(batch) > 0).all() and batch.min() >= 100 and batch.max() < 600 for batch in batches)
    # The size of a batch is binomial, and so is the number of steps that have a sample.
    assert abs(sizes.mean() - 25) < 4 * math.sqrt(500 * rate * (1 - rate) / steps)
    assert abs(sizes.var() / (500 * rate * (1 - rate)) - 1) < 4 * math.sqrt(2 / steps)
    times = np.bincount(np.concatenate(batches), minlength=600)[100:]
    deviation = (times - steps * rate) / math.sqrt(steps * rate * (1 - rate))
    assert abs(deviation.std() - 1) < 4 * math.sqrt(1 / (2 * 500))
    assert np.abs(deviation).max() < 5


def test_membership_of_a_sample_depends_on_key_step_and_sample_alone() -> None:
    large, small = PoissonSampler(range(70_000), 7_000, KEY), PoissonSampler(range(35_000), 3_500, KEY)
    batch = large.batch(3)
    assert batch[batch < 35_000].tolist() == small.batch(3).tolist()
    assert (batch >= 65_536).any()
    other = PoissonSampler(range(70_000), 7_000, KEY[::-1])
    assert len(np.intersect1d(batch, other.batch(3))) < 1_000
    assert PoissonSampler(range(5), 5, KEY).batch(0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_divide_the_samples_of_a_step(digits: Table, ranks: int) -> None:
    config = private(ranks=ranks, batch={"global": 8, "micro": 2})
    seen = []
    for rank in range(ranks):
        batches = Batches(digits, config, world(rank, ranks))
        batches.draw_privately(KEY)
        read: list[tuple[float, ...]] = []
        for step in range(20):
            counted = [
                (step, *row.tolist())
                for part in batches.micro_batches(step)
                for row, target in zip(part.inputs, part.targets.tolist(), strict=True)
                if target >= 0
            ]
            assert len(counted) in (batches.batch_size(step) // ranks, -(-batches.batch_size(step) // ranks))
            read += counted
        batches.close()
        seen += read
    expected = PoissonSampler(range(digits.count), 8, KEY)
    rows = [(step, *digits.features[number].tolist()) for step in range(20) for number in expected.batch(step)]
    assert sorted(seen) == sorted(rows)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [32, 5, 1])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_the_gradient_is_the_sum_of_clipped_gradients_of_samples(digits: Table, micro: int, limit: float) -> None:
    config = private(privacy={"maxGradNorm": limit}, batch={"global": 32, "micro": 1}).replace(micro_batch=micro)
    setup = Setup(config, digits)
    expected, norms = reference(setup, one_by_one(setup, digits, 2), 1, limit)
    assert len(norms) != 32, "the sizes of batches differ"
    assert max(norms) > 0.5
    torch.testing.assert_close(setup.gradient(step=2), expected / 32, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        {},
        pytest.param({"lora": {"rank": 4}, "from": {"path": "/weights"}}, id="adapters"),
        pytest.param({"tiedEmbeddings": True, "qkNorm": True}, id="tied embeddings, norms of queries and keys"),
    ],
)
def test_the_gradient_of_a_transformer(text: Samples, model: dict[str, Any]) -> None:
    config = private(LLAMA, model=model, batch={"global": 8}, privacy={"maxGradNorm": 0.1})
    setup = Setup(config, text)
    assert config.tokens_per_sample == 16
    expected, norms = reference(setup, one_by_one(setup, text, 1), 16, 0.1)
    assert min(norms) > 0.1, "all are clipped"
    torch.testing.assert_close(setup.gradient(step=1), expected / 8, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_mean_over_the_samples_of_the_step(digits: Table) -> None:
    setup = Setup(private(), digits)
    setup.gradient(step=4)
    assert setup.batches._poisson is not None
    inputs, targets, _ = digits.read(setup.batches._poisson.batch(4), 0, 1)
    expected = nn.functional.cross_entropy(setup.model(inputs), targets)
    assert setup.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_clipping_is_that_of_opacus_and_bounds_each_sample() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5))]
    gradients = [torch.randn(20, 4, 3), torch.randn(20, 5)]
    factors = clip_factors([g.clone() for g in gradients], 3.0)
    norms = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1)
    assert (factors < 1).any()
    assert (factors == 1).any()
    assert (factors * norms).max() <= 3.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad_sample = gradient.clone()  # type: ignore[attr-defined]
    theirs = DPOptimizer(torch.optim.SGD(parameters), noise_multiplier=0.0, max_grad_norm=3.0, expected_batch_size=20)
    theirs.clip_and_accumulate()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(torch.einsum("n,n...->...", factors, gradient), parameter.summed_grad)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad: float) -> None:
    gradients = [torch.ones(3, 2), torch.ones(3, 4)]
    gradients[1][1, 2] = bad
    factors = clip_factors(gradients, 1.0)
    sums = [factors @ gradient for gradient in gradients]
    assert all(s.isfinite().all() for s in sums)
    assert torch.cat(sums).norm() <= 2 * 1.0 + (bad == 1e30)
    assert factors[0] == factors[2] == pytest.approx(1 / math.sqrt(6), rel=1e-5)


def test_a_sample_that_is_not_finite_protects_the_others_and_itself(digits: Table) -> None:
    """Whether a step is skipped must not depend on one sample."""
    setup = Setup(private(), digits)
    clean = setup.gradient(step=0)
    assert setup.batches._poisson is not None
    spoiled = digits.features.copy()
    spoiled[setup.batches._poisson.batch(0)[0]] = np.float32(np.nan)
    table = Table(spoiled, digits.classes, digits.name, digits.trained_on, digits.held_out)
    gradient = Setup(private(), table).gradient(step=0)
    assert gradient.isfinite().all()
    assert 0 < (gradient - clean).norm() * 32 <= 1.0 + 1e-5


def test_parameters_that_are_not_finite_make_a_bad_step(digits: Table) -> None:
    setup = Setup(private(), digits)
    with torch.no_grad():
        next(setup.model.parameters()).view(-1)[0] = math.inf
    assert setup.gradient().isnan().all()


def test_the_gradients_of_two_data_sets_that_differ_by_one_sample_differ_by_the_limit_at_most(digits: Table) -> None:
    limit, step = 0.3, 1
    whole = Setup(private(privacy={"maxGradNorm": limit}), digits)
    gradient = whole.gradient(step=step)
    assert whole.batches._poisson is not None
    drawn = whole.batches._poisson.batch(step)
    for sample in (drawn[0], drawn[-1]):
        others = (digits.read(np.array([number]), 0, 1) for number in drawn if number != sample)
        total, _ = reference(whole, others, 1, limit)
        assert 0 < (gradient * 32 - total).norm() <= limit * (1 + 1e-4)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_the_noise_has_the_deviation_of_the_multiplier_times_the_limit(digits: Table) -> None:
    setup = Setup(private(privacy={"maxGradNorm": 0.5}, model={"name": "mlp", "hiddenSizes": [512, 64]}), digits)
    without = setup.gradient(step=3)
    noise = (setup.gradient(step=3, noise=1.5) - without) * 32
    assert len(noise) > BLOCK, "more than one block"
    assert abs(noise.std().item() / (1.5 * 0.5) - 1) < 4 / math.sqrt(2 * len(noise))
    assert stats.kstest(noise.numpy() / 0.75, "norm").pvalue > 0.01
    again = (setup.gradient(step=3, noise=1.5) - without) * 32
    torch.testing.assert_close(noise, again)
    assert not torch.equal(noise, (setup.gradient(step=4, noise=1.5) - setup.gradient(step=4)) * 32)


def test_the_ranks_add_the_noise_once(digits: Table) -> None:
    model = {"name": "mlp", "hiddenSizes": [512, 64]}
    config = private(ranks=2, model=model)
    parts = [Setup(config, digits, rank) for rank in range(2)]
    summed = torch.stack([part.gradient(step=1, noise=2.0) for part in parts]).sum(dim=0)
    alone = Setup(private(model=model), digits).gradient(step=1, noise=2.0)
    torch.testing.assert_close(summed, alone, rtol=1e-4, atol=1e-6)


def test_a_step_without_samples_is_noise_alone(digits: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(private(batch={"global": 1}), digits)
    empty = next(step for step in range(100) if setup.batches.batch_size(step) == 0)
    gradient = setup.gradient(step=empty, noise=1.0)
    monkeypatch.setattr(private_gradients, "noise_block", lambda *_: np.zeros(_[-1]))
    assert setup.gradient(step=empty, noise=1.0).abs().max() == 0
    assert gradient.std().item() == pytest.approx(1.0, rel=0.1)
    assert setup.loss.isnan()


# --- data -------------------------------------------------------------------------------------------------------------


def test_columns_of_a_private_table_are_not_scaled_by_the_data(tmp_path: Path) -> None:
    x = np.array([[1.0, 200.0], [3.0, 400.0], [5.0, -600.0]])
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(3))
    data = {"source": "table", "path": str(tmp_path / "t.npz")}
    table = load_table(private({"model": {"name": "mlp"}, "data": data}, batch={"global": 1}))
    assert sorted(map(tuple, table.features.tolist())) == sorted(map(tuple, x.tolist()))
    digits = load_table(private())
    assert (digits.features.min(), digits.features.max()) == (-1.0, 1.0)
    np.savez(tmp_path / "t.npz", x=x * 1e300, y=np.arange(3))
    with pytest.raises(ConfigError, match="column 0 of x has values that are too large"):
        load_table(private({"model": {"name": "mlp"}, "data": data}, batch={"global": 1}))
