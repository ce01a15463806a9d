"""Labelled samples for classification: a row of features and a class for each sample."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.runtime.errors import ConfigError

_SHUFFLE_SEED = 0
"""Constant, so that the evaluation samples do not depend on spec.trainer.seed."""


@dataclass(frozen=True)
class Table:
    """Features [samples, features], scaled to mean 0 and deviation 1, and classes [samples], in random order."""

    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    name: str

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.classes)

    @property
    def width(self) -> int:
        """Number of features of a sample."""
        return int(self.features.shape[1])

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return int(self.classes.max()) + 1

    @property
    def fingerprint(self) -> int:
        """63 bits of the SHA-256 of features and classes."""
        digest = hashlib.sha256(self.features.tobytes() + self.classes.tobytes())
        return int.from_bytes(digest.digest()[:8], "little") >> 1

    @property
    def tokenizer(self) -> None:
        """No tokenizer."""

    def read(self, numbers: IntArray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """Return features [N, width] and classes [N] of samples; they have no parts."""
        assert parts == 1, "admission refuses context parallelism for a table"
        return torch.from_numpy(self.features[numbers]), torch.from_numpy(self.classes[numbers])

    def __str__(self) -> str:
        return f"{self.count:,} samples of {self.width} features in {self.class_count} classes ({self.name})"


def load_table(config: RunConfig) -> Table:
    """Return the samples of spec.trainer.data, shuffled.

    Raises:
        ConfigError: the file is missing, or does not hold the arrays x and y.
    """
    data = config.trainer.data
    if data.path is None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        name = "digits"
    else:
        x, y = _read_archive(Path(data.path))
        name = data.path
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(y))
    # Mean and deviation of the training samples alone: evaluation samples must not leak into the training.
    trained = x[order][: len(y) - eval_sample_count(len(y), data.eval_fraction)]
    deviation = trained.std(axis=0)
    scaled = (x[order] - trained.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return Table(scaled.astype(np.float32), y[order].astype(np.int64), name)


def eval_sample_count(count: int, share: float) -> int:
    """Return how many of `count` samples, the last ones, are for evaluation only: at least one if share > 0."""
    return max(1, round(count * share)) if share > 0 else 0


def _read_archive(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    field = f"spec.trainer.data.path: {path}"
    fix = "write it with numpy.savez(path, x=features, y=classes)"
    try:
        with np.load(path, allow_pickle=False) as archive:
            x, y = archive["x"], archive["y"]
    except OSError as error:
        raise ConfigError(
            f"{field} cannot be read ({error.strerror or error}); mount it in workers.template"
        ) from error
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{field} is not a NumPy archive with arrays x and y; {fix}") from error
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or len(y) == 0:
        raise ConfigError(f"{field}: x must be [samples, features] and y [samples], not {x.shape} and {y.shape}; {fix}")
    if not np.issubdtype(x.dtype, np.number) or not np.isfinite(x).all():
        raise ConfigError(f"{field}: x must hold finite numbers only; clean the data, then {fix}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ConfigError(f"{field}: y must hold classes, whole numbers from 0; number the classes, then {fix}")
    return x, y
