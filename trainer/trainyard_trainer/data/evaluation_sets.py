"""Which samples an evaluation uses: the held-out ones, or a limited number of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainyard_trainer.data.samples import Subset
from trainyard_trainer.data.sampling import IntArray, permute, quotas

_SELECTION_SEED = 0x6576616C
"""Seed of the selection: not that of the run, so that runs with different seeds evaluate the same samples."""


class EvaluationSet(NamedTuple):
    """The samples of one source that are evaluated."""

    name: str
    """Name of the source."""
    numbers: range | IntArray
    """Numbers of the samples, in ascending order."""

    def at(self, positions: IntArray) -> IntArray:
        """Return the numbers of the samples at some positions [N]."""
        if isinstance(self.numbers, range):
            return self.numbers.start + positions
        chosen: IntArray = self.numbers[positions]
        return chosen


def evaluation_sets(subsets: Sequence[Subset], limit: int | None = None) -> tuple[EvaluationSet, ...]:
    """Return the samples to evaluate: the held-out ones of each source, or all samples if none are held out.

    With a limit each source has a part of it in proportion to its samples, and at least one. A pseudo-random order of
    the samples of a source, which follows from their number alone, decides which ones: every evaluation on every layout
    uses the same, they come from everywhere in the source, and a larger limit adds to them.

    Args:
        subsets: all sources.
        limit: most samples in all; None, or a limit that is not exceeded: all.
    """
    held_out = [(subset.name, subset.held_out) for subset in subsets if len(subset.held_out)]
    ranges = held_out or [(subset.name, subset.train) for subset in subsets]
    sizes = [len(numbers) for _, numbers in ranges]
    if limit is None or max(limit, len(sizes)) >= sum(sizes):
        return tuple(EvaluationSet(name, numbers) for name, numbers in ranges)
    # Each has one; so no source can get more than it has.
    counts = quotas([size - 1 for size in sizes], max(limit, len(sizes)))
    return tuple(
        EvaluationSet(name, _selection(numbers, count)) for (name, numbers), count in zip(ranges, counts, strict=True)
    )


def sample_count(sets: Sequence[EvaluationSet]) -> int:
    """Return the number of samples in some sets."""
    return sum(len(each.numbers) for each in sets)


def _selection(numbers: range, count: int) -> IntArray:
    """Return the numbers of `count` samples of a source, in ascending order."""
    chosen = np.sort(permute(np.arange(count, dtype=np.int64), len(numbers), _SELECTION_SEED, 0))
    selection: IntArray = numbers.start + chosen
    selection.setflags(write=False)
    return selection
