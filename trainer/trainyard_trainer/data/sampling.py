"""The order of samples: a pure function of the seed and of the sample's position in the run.

Sample number i of a run (i counts over all ranks, from 0) is window `permutation(i mod windows)` of epoch
`i div windows`. So every layout of processes draws the same samples for the same step, each window is drawn once
per epoch, and the position of a run is one integer.

With several sources, each block of MIXED samples has a fixed number of each source, in proportion to the weights, in an
order that differs from block to block. So sample i is the n-th of its source, for an n that follows from i alone, and
each source has epochs of its own.

In a private run each sample takes part in each step with the same probability (`PoissonSampler`): whether sample i is
in step t is a function of t, of i, and of a secret key in place of the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard_trainer.runtime.secret_words import secret_words

_ROUNDS = 6
_STEPS_AT_ONCE = 64

MIXED = 10_000
"""Samples of a block in which the sources are mixed: the shares of the sources are multiples of its inverse."""
_MIX_SEED, _SOURCE_SEED = 0x6D6978, 0x737263
"""Constants that separate the orders of blocks and of sources from each other for one seed."""

IntArray = NDArray[np.int64]


class MixedSource(NamedTuple):
    """A source of a mixture."""

    first: int
    """Number of its first window."""
    windows: int
    """Number of its windows."""
    quota: int
    """Its samples in each block."""


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Return how many of some samples come from each source: at least one, `total` in all, the others by weight.

    What rounding leaves goes to the sources with the largest remainders.
    """
    exact = [1 + (total - len(weights)) * weight / sum(weights) for weight in weights]
    rounded = [int(share) for share in exact]
    remainders = sorted(range(len(weights)), key=lambda i: (rounded[i] - exact[i], i))
    for index in remainders[: total - sum(rounded)]:
        rounded[index] += 1
    return rounded


@dataclass(frozen=True)
class Sampler:
    """The order of the windows of a data set, which differs from epoch to epoch."""

    windows: int
    """Number of windows: one epoch. Of several sources the sum, although each has epochs of its own."""
    seed: int
    global_batch: int
    shares: int
    """Parts of a global batch: one for each data-parallel rank."""
    mixture: tuple[MixedSource, ...] = ()
    """The sources, if there are several."""

    def batch_windows(self, step: int, index: int, origin: int = 0) -> IntArray:
        """Return the windows of share `index` of the batch of a step (both from 0), in order: [global_batch / shares].

        `origin`: number of the sample that step 0 begins with.
        """
        block, position = divmod(step, _STEPS_AT_ONCE)
        windows: IntArray = _block_windows(self, block, index, origin)[position]
        return windows

    def windows_at(self, samples: IntArray) -> IntArray:
        """Return the window of each sample number [N]."""
        if not self.mixture:
            return _shuffled(samples, self.windows, self.seed)
        blocks, places = np.divmod(samples, MIXED)
        windows = np.empty_like(samples)
        for block in np.unique(blocks):
            in_block = blocks == block
            origins, ranks = _mixed_block(self.mixture, self.seed, int(block))
            origin, rank = origins[places[in_block]], ranks[places[in_block]]
            found = np.empty_like(rank)
            for index, source in enumerate(self.mixture):
                selected = origin == index
                drawn = int(block) * source.quota + rank[selected]
                seed = self.seed ^ (_SOURCE_SEED + index)
                found[selected] = source.first + _shuffled(drawn, source.windows, seed)
            windows[in_block] = found
        return windows


_POISSON_BLOCK = 2**16
"""Samples whose random numbers are computed at once."""


@dataclass(frozen=True)
class PoissonSampler:
    """Batches of a private run, whose sizes differ: each sample is in each of them with the same probability.

    The protection of a sample rests on not knowing in which batches it is, so they follow from a secret key.
    """

    samples: range
    """Numbers of the training samples."""
    expected: int
    """Expected number of samples in a batch; the probability of a sample is this divided by the number of samples."""
    key: bytes

    def batch(self, step: int) -> IntArray:
        """Return the samples of a step (from 0) over all ranks, in order."""
        return _poisson_batch(self, step)


@lru_cache(maxsize=8)
def _poisson_batch(sampler: PoissonSampler, step: int) -> IntArray:
    size = len(sampler.samples)
    # Compared with 64 bits, rounded down: at most 2^-64 below the probability, which the budget is computed with.
    limit = (sampler.expected << 64) // size
    chosen = []
    for block, start in enumerate(range(0, size, _POISSON_BLOCK)):
        words = secret_words(sampler.key, "samples", step, block, min(_POISSON_BLOCK, size - start))
        drawn = np.arange(len(words)) if limit >> 64 else np.flatnonzero(words < np.uint64(limit))
        chosen.append(sampler.samples.start + start + drawn)
    batch: IntArray = np.concatenate(chosen).astype(np.int64)
    batch.setflags(write=False)
    return batch


def _shuffled(samples: IntArray, windows: int, seed: int) -> IntArray:
    """Return the window of each sample number [N] of one source."""
    epochs, positions = np.divmod(samples, windows)
    found = np.empty_like(samples)
    for epoch in np.unique(epochs):
        selected = epochs == epoch
        found[selected] = permute(positions[selected], windows, seed, int(epoch))
    return found


@lru_cache(maxsize=4)
def _mixed_block(mixture: tuple[MixedSource, ...], seed: int, block: int) -> tuple[IntArray, IntArray]:
    """Return the source of each sample of a block, and how many of this source come before it: [MIXED] each."""
    slots = permute(np.arange(MIXED, dtype=np.int64), MIXED, seed ^ _MIX_SEED, block)
    origins = np.searchsorted(np.cumsum([source.quota for source in mixture]), slots, side="right").astype(np.int64)
    ranks = np.empty(MIXED, dtype=np.int64)
    for index, source in enumerate(mixture):
        ranks[origins == index] = np.arange(source.quota)
    return origins, ranks


@lru_cache(maxsize=4)
def _block_windows(sampler: Sampler, block: int, index: int, origin: int) -> IntArray:
    """Return the windows of a share for a block of steps [steps, share]: one call costs a millisecond anyway."""
    share = sampler.global_batch // sampler.shares
    steps = block * _STEPS_AT_ONCE + np.arange(_STEPS_AT_ONCE, dtype=np.int64)
    samples = origin + steps[:, None] * sampler.global_batch + index * share + np.arange(share, dtype=np.int64)
    samples = samples.clip(min=0)  # after a change of the global batch, earlier steps may have negative numbers
    windows = sampler.windows_at(samples.ravel()).reshape(samples.shape)
    windows.setflags(write=False)
    return windows


def permute(positions: IntArray, size: int, seed: int, epoch: int) -> IntArray:
    """Return the values of a pseudo-random permutation of range(size) at some positions [N], in O(N) memory.

    A balanced Feistel network permutes the numbers of 2k bits (Luby and Rackoff, 1988); walking its cycle until
    the value is below size narrows it down to range(size) (Black and Rogaway, 2002). Since 4^k < 4 size, the
    walk takes fewer than four turns on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, seed, epoch)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = values >> shift, values & mask
    for turn in range(_ROUNDS):
        key = _mix(np.array([seed], np.uint64) ^ _mix(np.array([epoch * _ROUNDS + turn], np.uint64)))
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): each bit of x changes half of the result."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
