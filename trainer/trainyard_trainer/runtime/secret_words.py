"""Random numbers that nothing but a secret key predicts: SHAKE-256 (FIPS 202) as a keyed pseudo-random function.

Generators such as Mersenne Twister or Philox are not made for secrets: enough of their output, or a small seed, gives
away the rest. Here each block of numbers is a function of the key, of what it is for, of the step and of its number, so
that any rank computes any block, in any order, and a step that is repeated has the same numbers.
"""

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
"""Bytes of a key."""


def secret_words(key: bytes, purpose: str, step: int, block: int, count: int) -> NDArray[np.uint64]:
    """Return random integers of 64 bits [count].

    Args:
        key: `KEY_BYTES` random bytes.
        purpose: what the numbers are for; other purposes have other numbers.
        step: number of the step.
        block: number of the block within the step.
        count: size of the block. A smaller block begins with the same numbers as a larger one.
    """
    assert len(key) == KEY_BYTES
    content = key + purpose.encode() + struct.pack("<QQ", step, block)
    return np.frombuffer(hashlib.shake_256(content).digest(8 * count), "<u8")
