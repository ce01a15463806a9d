"""Integrated gradients (Sundararajan et al., 2017) whose attributions sum to the difference of the outputs.

The integral along the straight path from a baseline to the input is a sum over points of the path. A fixed number of
points is enough for one model and too few for another, so they are multiplied until the attributions are complete.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""Largest difference between the sum of the attributions and the difference of the outputs."""
POINTS, FACTOR, MOST_POINTS = 64, 4, 65_536
"""Points of the path: at first, by how much they are multiplied, and at most."""


class Attributions(NamedTuple):
    """Attributions of some inputs."""

    values: Tensor
    """[N, ...]: the part of each feature in the difference of the outputs."""
    gap: Tensor
    """[N]: sum of the attributions, less the difference of the outputs; 0 for exact integrals."""
    points: int
    """Most points of a path."""


Attribute = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Takes the numbers of some inputs [R] and the points of their paths; returns attributions [R, ...] and gaps [R]."""


def until_complete(attribute: Attribute, count: int, most_points: int = MOST_POINTS) -> Attributions:
    """Return the attributions of `count` inputs, with as many points as each of them needs, but at most `most_points`.

    An input whose gap stays larger than `TOLERANCE` keeps its last attributions: reports show the gap.
    """
    points = POINTS
    values, gap = attribute(torch.arange(count), points)
    while points * FACTOR <= most_points:
        incomplete = (gap.abs() > TOLERANCE).nonzero().flatten()
        if not len(incomplete):
            break
        points *= FACTOR
        values[incomplete], gap[incomplete] = attribute(incomplete.cpu(), points)
    return Attributions(values, gap, points)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors: 1 for the same order, 0 for unrelated ones."""
    ranks = torch.stack([values.flatten().argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
