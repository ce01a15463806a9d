"""Initial values: normal, a function of seed, name and place alone, and not computed where a checkpoint has others."""

from pathlib import Path

import pytest
import torch

from tests.trainer.layouts import FSDP, Layout, pipe
from tests.trainer.pods import Starter, finish
from tests.trainer.test_resume import train
from trainyard_trainer.models import initial
from trainyard_trainer.models.initial import initialize, normal

KEY = (1, -2, 3, -4)


def values(rows: range, column: int, count: int, key: tuple[int, int, int, int] = KEY) -> torch.Tensor:
    return normal(key, torch.tensor(rows, dtype=torch.int32), column, count)


def test_a_part_has_the_values_of_the_whole() -> None:
    whole = values(range(300), 0, 700)
    for rows, first, count in ((range(7, 300), 0, 700), (range(300), 350, 350), (range(31, 33), 699, 1)):
        part = values(rows, first, count)
        # Not bitwise: a processor computes the last elements of an array otherwise than those in a vector.
        torch.testing.assert_close(part, whole[rows.start : rows.stop, first : first + count], rtol=1e-6, atol=1e-7)


def test_values_are_normal_and_independent() -> None:
    first, second = values(range(1000), 0, 1000), values(range(1000), 0, 1000, (1, -2, 3, -5))
    count = first.numel()
    error = 4 / count**0.5  # four standard errors
    assert abs(first.mean()) < error
    assert abs(first.std() - 1) < error
    assert abs((first**3).mean()) < error * 15**0.5
    assert abs((first**4).mean() - 3) < error * 96**0.5
    ordered = first.flatten().sort().values
    expected = 0.5 + 0.5 * torch.erf(ordered.double() / 2**0.5)
    distance = (expected - torch.arange(count, dtype=torch.float64) / count).abs().max()
    assert distance < 1.95 / count**0.5  # Kolmogorov and Smirnov: exceeded once in 1000
    neighbours = (first[:, 1:] * first[:, :-1], first[1:] * first[:-1], first[1:, 1:] * first[:-1, :-1])
    for products in (*neighbours, first * second, first * first.T):
        kept = products if products.shape != (1000, 1000) else products[~torch.eye(1000, dtype=torch.bool)]
        assert abs(kept.mean()) < 1.5 * error
    assert len(set(first.flatten().tolist())) > 0.95 * count  # of 24 bits


def test_stacks_and_vectors_are_filled() -> None:
    model = torch.nn.Module()
    model.stack = torch.nn.Parameter(torch.empty(3, 40, 50))
    model.vector = torch.nn.Parameter(torch.empty(900))
    model.gain = torch.nn.Parameter(torch.empty(5))
    model.nothing = torch.nn.Parameter(torch.empty(0))
    model.number = torch.nn.Parameter(torch.full((), 1000.0))
    initialize(model, 0, lambda name, _shape: (2.0, 0.0) if name == "gain" else (1.0, 0.5))
    assert model.gain.tolist() == [2.0] * 5
    for parameter in (model.stack, model.vector):
        assert parameter.mean().item() == pytest.approx(1, abs=0.05)
        assert parameter.std().item() == pytest.approx(0.5, rel=0.1)
    assert not torch.allclose(model.stack[0], model.stack[1])
    assert abs(model.number.item() - 1) < 5


def test_the_size_of_a_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled() -> torch.Tensor:
        linear = torch.nn.Linear(70, 50, bias=False)
        initialize(linear, 0, lambda _name, _shape: (0.0, 1.0))
        return linear.weight

    whole = filled()
    monkeypatch.setattr(initial, "CPU_CHUNK", 300)
    torch.testing.assert_close(filled(), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "layout", [Layout(2, {}), Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)})], ids=str
)
def test_resuming_computes_no_initial_values(start: Starter, tmp_path: Path, layout: Layout) -> None:
    entry = "tests.trainer.model_spies:no_initial_values"
    (failed,) = train(start, tmp_path, layout, stop=3, entry=entry)
    assert finish([failed]) == [1]
    assert "initial values are computed" in failed.stderr
    (first,) = train(start, tmp_path, layout, stop=3)
    assert finish([first]) == [0], first.stderr
    (second,) = train(start, tmp_path, layout, stop=6, entry=entry)
    assert finish([second]) == [0], second.stderr
    assert [report["step"] for report in second.reports] == [4, 5, 6]
