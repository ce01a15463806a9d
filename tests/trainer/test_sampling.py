"""Every window once per epoch, in an order that no layout changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard_trainer.data.sampling import MIXED, MixedSource, Sampler, permute, quotas

SIZES = st.integers(1, 2000)
SEEDS = st.integers(0, 2**31 - 1)


@given(SIZES, SEEDS, st.integers(0, 1000))
def test_permutation_reaches_every_window_once(size: int, seed: int, epoch: int) -> None:
    drawn = permute(np.arange(size), size, seed, epoch)
    assert sorted(drawn.tolist()) == list(range(size))


@given(SIZES, SEEDS, st.data())
def test_permutation_of_some_places_is_part_of_the_whole(size: int, seed: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
    whole = permute(np.arange(size), size, seed, 0)
    assert permute(places, size, seed, 0).tolist() == whole[places].tolist()


def test_permutation_of_a_size_that_no_memory_holds() -> None:
    size = 10**15
    drawn = permute(np.arange(1000), size, 0, 0)
    assert len(set(drawn.tolist())) == 1000
    assert 0 <= drawn.min() < drawn.max() < size


@given(SEEDS)
def test_order_looks_random(seed: int) -> None:
    """Neighbours do not stay together, and one epoch tells nothing of another (correlations within 5 sigma)."""
    size = 1000
    first, second = (permute(np.arange(size), size, seed, epoch) for epoch in (0, 1))
    for a, b in ((first[:-1], first[1:]), (first, second), (first, np.arange(size))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(size)


@pytest.mark.parametrize("windows", [1, 7, 64, 100])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_draws_the_same_samples(windows: int, world_size: int) -> None:
    alone = Sampler(windows, seed=5, global_batch=8, shares=1)
    spread = Sampler(windows, seed=5, global_batch=8, shares=world_size)
    for step in range(30):
        together = np.concatenate([spread.batch_windows(step, rank) for rank in range(world_size)])
        assert together.tolist() == alone.batch_windows(step, 0).tolist()


@pytest.mark.parametrize("windows", [1, 7, 64, 100])
def test_no_window_is_repeated_or_skipped_within_an_epoch(windows: int) -> None:
    """Also where a batch begins in one epoch and ends in the next."""
    sampler = Sampler(windows, seed=5, global_batch=8, shares=2)
    drawn = [
        window for step in range(windows) for rank in (0, 1) for window in sampler.batch_windows(step, rank).tolist()
    ]
    assert len(drawn) == 8 * windows
    epochs = [drawn[start : start + windows] for start in range(0, len(drawn), windows)]
    assert all(sorted(epoch) == list(range(windows)) for epoch in epochs)
    if windows > 7:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    """A resumed run depends on this order: it must never change."""
    assert Sampler(1000, 7, 10, 1).batch_windows(123, 0).tolist() == ORDER


ORDER = [12, 848, 292, 174, 277, 729, 557, 311, 17, 870]


@given(st.lists(st.floats(0.0001, 10_000), min_size=2, max_size=24))
def test_quotas_are_the_weights_and_leave_no_source_out(weights: list[float]) -> None:
    found = quotas(weights, MIXED)
    assert sum(found) == MIXED
    for share, weight in zip(found, weights, strict=True):
        assert share >= 1
        assert abs(share - MIXED * weight / sum(weights)) <= len(weights) + 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_draws_the_same_mixture(world_size: int) -> None:
    mixture = (MixedSource(0, 100, 7000), MixedSource(150, 9, 2999), MixedSource(170, 1000, 1))
    alone = Sampler(1109, 5, 8, 1, mixture)
    spread = Sampler(1109, 5, 8, world_size, mixture)
    for step in (0, 1, 1249, 1250, 2500):
        together = np.concatenate([spread.batch_windows(step, rank) for rank in range(world_size)])
        assert together.tolist() == alone.batch_windows(step, 0).tolist()
