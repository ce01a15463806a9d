"""spec.trainer.data.exclude: samples of which nothing reaches the model, while all others keep their places."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainyard.resource.exclusion import Exclusion
from trainyard_trainer.data.samples import Subset
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import ObjectStoreUnavailable, location

_FIELD = "spec.trainer.data.exclude"


class Exclusions:
    """The excluded samples, and for each the sample that is read in its place, without counting."""

    def __init__(self, given: Exclusion | None, subsets: Sequence[Subset]) -> None:
        """Read which samples are excluded.

        Raises:
            ConfigError: the file is unreadable, a number is not that of a sample to train on, or none is left.
        """
        named = [] if given is None else sorted({*given.samples, *_read(given.file)})
        self.numbers: IntArray = np.array(named, dtype=np.int64)
        """Numbers of the excluded samples, sorted."""
        self._stand_ins = self.numbers.copy()
        known = np.zeros(len(self.numbers), dtype=bool)
        for subset in subsets:
            inside = (self.numbers >= subset.train.start) & (self.numbers < subset.train.stop)
            known |= inside
            self._stand_ins[inside] = _stand_ins(self.numbers[inside], subset)
        if not known.all():
            ranges = ", ".join(f"{s.train.start} to {s.train.stop - 1}" for s in subsets)
            raise ConfigError(
                f"{_FIELD}: {self.numbers[~known][0]} is not the number of a sample to train on, which are {ranges}; "
                "remove it"
            )

    @property
    def identity(self) -> int | None:
        """63 bits that identify the excluded samples; None if there are none."""
        if not len(self.numbers):
            return None
        return int.from_bytes(hashlib.sha256(self.numbers.tobytes()).digest()[:8], "little") >> 1

    def replace(self, numbers: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
        """Return samples [N] with others in place of the excluded ones, and which have been excluded [N]."""
        if not len(self.numbers):
            return numbers, np.zeros(len(numbers), dtype=bool)
        places = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        excluded: NDArray[np.bool_] = self.numbers[places] == numbers
        return np.where(excluded, self._stand_ins[places], numbers), excluded


def _stand_ins(excluded: IntArray, subset: Subset) -> IntArray:
    """Return for each excluded sample of a source the next one that is not, after the last one the first."""
    if len(excluded) == len(subset.train):
        raise ConfigError(
            f"{_FIELD}: leaves none of the {len(subset.train)} samples of {subset.name} to train on; name fewer"
        )
    names = set(excluded.tolist())
    found = np.empty_like(excluded)
    following = subset.train.start
    while following in names:
        following += 1
    # From the last one back, the next sample is either the one before or where that leads to.
    for index in range(len(excluded) - 1, -1, -1):
        after = int(excluded[index]) + 1
        if after not in names and after < subset.train.stop:
            following = after
        found[index] = following
    return found


def _read(path: str | None) -> Iterable[int]:
    """Return the numbers in a file, one a line; empty lines and what follows a # are left out.

    Raises:
        ConfigError: it cannot be read, or a line is not a number.
    """
    if path is None:
        return []
    try:
        lines = location(path).read_text("utf-8").splitlines()
    except ObjectStoreUnavailable:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{_FIELD}.file: {path} cannot be read in the worker ({reason}); correct the path") from error
    numbers = []
    for place, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not (text.isascii() and text.isdigit()):
            raise ConfigError(
                f"{_FIELD}.file: {path}, line {place}: {text[:40]!r} is not the number of a sample; write one number a "
                "line"
            )
        numbers += [int(text)] if text else []
    return numbers
