"""Progress lines with timings, on stderr so that stdout stays machine-readable."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print one progress line."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str, *, slow: bool = False) -> Iterator[None]:
    """Print how long a step took; a slow one is announced first, so that it does not look like a hang."""
    if slow:
        say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - start:.1f} s")
