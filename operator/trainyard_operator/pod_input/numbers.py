"""Numbers from pods, made fit for a status: JSON has neither NaN nor Inf, and the API's integers have 32 bits."""

import math

from trainyard.base import POSITIVE_INT32


def finite(value: float) -> float | None:
    """Return a value that JSON can hold; None for NaN and Inf."""
    return value if math.isfinite(value) else None


def count_of(value: float) -> int | None:
    """Return a value as an integer from 0 to 2^31 - 1; None for NaN, Inf and anything outside that range."""
    if not math.isfinite(value) or not 0 <= value <= POSITIVE_INT32:
        return None
    return int(value)
