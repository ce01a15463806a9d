"""Which samples an evaluation uses: the held-out ones, or a limited number of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainyard_trainer.data.samples import Subset
from trainyard_trainer.data.sampling import IntArray, permute

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
    if limit is None or limit >= sum(sizes):
        return tuple(EvaluationSet(name, numbers) for name, numbers in ranges)
    counts = _shares(sizes, max(limit, len(sizes)))
    return tuple(
        EvaluationSet(name, _selection(numbers, count)) for (name, numbers), count in zip(ranges, counts, strict=True)
    )


def sample_count(sets: Sequence[EvaluationSet]) -> int:
    """Return the number of samples in some sets."""
    return sum(len(each.numbers) for each in sets)


def _shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Divide a number of samples among sources: at least one each, the others in proportion to what each has left.

    What rounding leaves goes to the sources with the largest remainders. `limit` is less than the sum of the sizes.
    """
    spare, rest = limit - len(sizes), sum(sizes) - len(sizes)
    exact = [divmod(spare * (size - 1), max(1, rest)) for size in sizes]
    counts = [1 + whole for whole, _ in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-exact[index][1], index))
    for index in by_remainder[: limit - sum(counts)]:
        counts[index] += 1
    return counts


def _selection(numbers: range, count: int) -> IntArray:
    """Return the numbers of `count` samples of a source, in ascending order."""
    chosen = np.sort(permute(np.arange(count, dtype=np.int64), len(numbers), _SELECTION_SEED, 0))
    selection: IntArray = numbers.start + chosen
    selection.setflags(write=False)
    return selection
