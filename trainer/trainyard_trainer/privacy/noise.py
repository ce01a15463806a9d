"""Gaussian noise from a secret key, a block of numbers at a time."""

import numpy as np
from numpy.typing import NDArray

from trainyard_trainer.runtime.secret_words import secret_words

BLOCK = 2**16
"""Numbers of a block."""
_SUMMED = 4
"""Normal numbers in one sample of the noise."""


def noise_block(key: bytes, step: int, block: int, count: int = BLOCK) -> NDArray[np.float64]:
    """Return independent normal numbers with mean 0 and deviation 1 [count], a function of the arguments alone.

    Each is half the sum of four numbers of the method of Box and Muller (1958) in float64. Which values a single number
    can take depends on its mean, by its rounding, and would show the sum of the gradients (Mironov, 2012). To search
    through the sums of several numbers is too much work (Holohan and Braghin, 2021), which is why Opacus sums as many.
    """
    words = secret_words(key, "noise", step, block, _SUMMED * count)
    # The middle of 2^53 equal parts of (0, 1), so that no logarithm is infinite.
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius_and_angle = uniform.reshape(count, 2, _SUMMED // 2)
    radius, angle = np.sqrt(-2 * np.log(radius_and_angle[:, 0])), 2 * np.pi * radius_and_angle[:, 1]
    normal: NDArray[np.float64] = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=1) / 2
    return normal
