"""How much of a privacy budget some steps spend, by Opacus' analysis of Rényi differential privacy (Mironov, 2017)."""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard_trainer.privacy.ledger import Charge

LARGEST_NOISE = 1e6
"""No budget needs more; one that seems to is spent already."""
_SMALLEST_NOISE = 2.0**-5
"""Below it any budget of the API is spent by one step."""
_LARGE_ORDERS = (64, 80, 96, 128, 192, 256, 512)
"""Orders besides those that Opacus tries: budgets below 0.3 need them."""
_DIGITS = 1e4
"""Steps of 1 in which a noise multiplier is chosen."""


class Target(NamedTuple):
    """A budget."""

    epsilon: float
    delta: float


def epsilon_of(charges: Sequence[Charge], delta: float) -> float:
    """Return the epsilon of some steps together; 0 for none. It is an upper bound."""
    return _epsilon(_divergence(charges), delta)


def affordable_steps(before: Sequence[Charge], rate: float, noise: float, target: Target, most: int) -> int:
    """Return how many steps a budget allows, at most `most`, each with a sample rate and a noise multiplier.

    `before`: steps that have been made.
    """
    start, each = _divergence(before), _divergence_of_step(rate, noise)
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        if _epsilon(start + middle * each, target.delta) <= target.epsilon:
            least = middle
        else:
            most = middle - 1
    return least


def smallest_noise(before: Sequence[Charge], rate: float, steps: int, target: Target) -> float | None:
    """Return the smallest noise multiplier with which a budget allows some more steps, to four decimal places.

    None: no noise is enough, so the budget is spent. `before`: steps that have been made.
    """
    start = _divergence(before)

    def is_enough(noise: float) -> bool:
        return _epsilon(start + steps * _divergence_of_step(rate, noise), target.delta) <= target.epsilon

    high = 1.0
    while not is_enough(high):
        if high > LARGEST_NOISE:
            return None
        high *= 2
    low = high / 2
    while low > _SMALLEST_NOISE and is_enough(low):
        high, low = low, low / 2
    while high - low > 1 / _DIGITS:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return math.ceil(high * _DIGITS) / _DIGITS


def _divergence(charges: Sequence[Charge]) -> NDArray[np.float64]:
    """Return the Rényi divergence of some steps at each order; it adds up over steps."""
    total = np.zeros(len(_orders()))
    for charge in charges:
        total += charge.steps * _divergence_of_step(charge.sample_rate, charge.noise_multiplier)
    return total


@cache
def _orders() -> tuple[float, ...]:
    """Return the orders at which divergences are computed; Opacus is loaded for runs that need it only."""
    from opacus.accountants import RDPAccountant

    return (*RDPAccountant.DEFAULT_ALPHAS, *_LARGE_ORDERS)


@cache
def _divergence_of_step(rate: float, noise: float) -> NDArray[np.float64]:
    from opacus.accountants.analysis import rdp

    found: NDArray[np.float64] = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(_orders()))
    return found


def _epsilon(divergence: NDArray[np.float64], delta: float) -> float:
    if not divergence.any():
        return 0.0
    from opacus.accountants.analysis import rdp

    with warnings.catch_warnings():
        # With very much or very little noise the best order is beyond those tried: a bound all the same.
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        epsilon, _ = rdp.get_privacy_spent(orders=list(_orders()), rdp=divergence, delta=delta)
    return max(0.0, float(epsilon))
