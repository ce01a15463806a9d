"""Which sample comes when: a pure function of the seed and of the sample's place in the whole run.

Sample number i of a run (i counts over all ranks, from 0) is window `permutation(i mod windows)` of epoch
`i div windows`. So every layout of processes draws the same samples for the same step, each window is drawn once
per epoch, and where a run stands is one integer.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_STEPS_AT_ONCE = 64

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The order of the windows of a data set, epoch after epoch."""

    windows: int
    seed: int
    global_batch: int
    shares: int
    """Parts of a global batch: the data-parallel ranks."""

    def batch_windows(self, step: int, index: int, origin: int = 0) -> IntArray:
        """Windows of a share of the batch of a step (both from 0), in order: [global_batch / shares].

        `origin`: number of the sample that step 0 begins with.
        """
        block, place = divmod(step, _STEPS_AT_ONCE)
        drawn: IntArray = _draw(self, block, index, origin)[place]
        return drawn

    def windows_at(self, samples: IntArray) -> IntArray:
        """The window of each sample number."""
        epochs, places = np.divmod(samples, self.windows)
        drawn = np.empty_like(samples)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            drawn[now] = permute(places[now], self.windows, self.seed, int(epoch))
        return drawn


@lru_cache(maxsize=4)
def _draw(sampler: Sampler, block: int, index: int, origin: int) -> IntArray:
    """Windows of a share for a block of steps [steps, share]: NumPy costs a millisecond per call, however few."""
    share = sampler.global_batch // sampler.shares
    steps = block * _STEPS_AT_ONCE + np.arange(_STEPS_AT_ONCE, dtype=np.int64)
    samples = origin + steps[:, None] * sampler.global_batch + index * share + np.arange(share, dtype=np.int64)
    samples = samples.clip(min=0)  # after a change of the batch, steps before it have none
    drawn = sampler.windows_at(samples.ravel()).reshape(samples.shape)
    drawn.setflags(write=False)
    return drawn


def permute(places: IntArray, size: int, seed: int, epoch: int) -> IntArray:
    """Values of a pseudo-random permutation of range(size) at some places, without building all of it.

    A balanced Feistel network permutes the numbers of 2k bits (Luby and Rackoff, 1988); walking its cycle until
    the value is below size narrows it down to range(size) (Black and Rogaway, 2002). Since 4^k < 4 size, the
    walk takes fewer than four turns on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = places.astype(np.uint64)
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
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of x changes half of the result."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
