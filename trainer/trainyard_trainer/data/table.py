"""Labelled samples for classification: a row of features and a class for each sample."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainyard.config import RunConfig
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.data.samples import Batch, Subset
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.runtime.errors import ConfigError

MAX_CLASSES = 1 << 20
"""Most classes; larger numbers are identifiers, for each of which the model would have parameters."""
_SHUFFLE_SEED = 0
"""Constant, so that the evaluation samples do not depend on spec.trainer.seed."""


class TrainedOn(NamedTuple):
    """What a model has learnt of its table: how features are scaled, and the classes."""

    mean: NDArray[np.float64]
    """Mean of each feature over the samples to train on."""
    deviation: NDArray[np.float64]
    """Standard deviation of each feature over them."""
    classes: int
    """Number of classes."""

    @classmethod
    def of_record(cls, sources: Sequence[Mapping[str, Any]]) -> "TrainedOn | None":
        """Return what the record of a run says (`Table.sources`); None if it says nothing, as of old versions."""
        if len(sources) != 1 or not {"mean", "deviation", "classes"} <= sources[0].keys():
            return None
        mean, deviation, classes = (sources[0][name] for name in ("mean", "deviation", "classes"))
        return cls(np.asarray(mean, np.float64), np.asarray(deviation, np.float64), int(classes))


@dataclass(frozen=True)
class Table:
    """Features [samples, features], scaled to mean 0 and deviation 1, and classes [samples], in random order."""

    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    name: str
    trained_on: TrainedOn
    held_out: int = 0
    """Number of samples for evaluation only: the last ones."""
    tokenizer: TokenizerFile | None = None
    masks_targets: bool = False

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
        return self.trained_on.classes

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The table as one source."""
        trained = self.count - self.held_out
        return (Subset("data", 1.0, range(trained), range(trained, self.count)),)

    @cached_property
    def fingerprint(self) -> int:
        """63 bits of the SHA-256 of features and classes."""
        digest = hashlib.sha256(self.features.tobytes() + self.classes.tobytes())
        return int.from_bytes(digest.digest()[:8], "little") >> 1

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Fingerprint, held-out samples, scaling and classes, which JSON can hold."""
        held_out = [self.count - self.held_out, self.count]
        content = {"name": "data", "fingerprint": self.fingerprint, "samples": self.count, "heldOut": held_out}
        mean, deviation, classes = self.trained_on
        return [{**content, "mean": mean.tolist(), "deviation": deviation.tolist(), "classes": classes}]

    def row(self, number: int) -> int:
        """Return the row of a sample in the data as they were given, from 0."""
        return int(_order(self.count)[number])

    def read(self, numbers: IntArray, part: int, parts: int) -> Batch:
        """Return features [N, width] and classes [N] of samples; they have no parts."""
        assert parts == 1, "admission refuses context parallelism for a table"
        return Batch(torch.from_numpy(self.features[numbers]), torch.from_numpy(self.classes[numbers]))

    def __str__(self) -> str:
        return f"{self.count:,} samples of {self.width} features in {self.class_count} classes ({self.name})"


def load_table(config: RunConfig, trained_on: TrainedOn | None = None) -> Table:
    """Return the samples of spec.trainer.data, shuffled.

    `trained_on`: scaling and classes of the run that has trained the model; None: those of the samples to train on.

    Raises:
        ConfigError: the file is missing, or does not hold the arrays x and y, or evalFraction leaves no samples, or the
            model was trained on other features or fewer classes.
    """
    data = config.trainer.data
    if data.path is None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        name = "digits"
    else:
        x, y = _read_archive(Path(local_path(data.path, "spec.trainer.data.path")))
        name = data.path
    held_out = max(1, round(len(y) * data.eval_fraction)) if data.eval_fraction > 0 else 0
    order = _order(len(y))
    x, y = x[order].astype(np.float64), y[order].astype(np.int64)
    if trained_on is None:
        private = config.trainer.privacy is not None
        trained_on = _public(x, y, name) if private else _trained_on(x, y, len(y) - held_out)
    _check_matches(x, y, trained_on, name)
    return Table(_scaled(x, trained_on, name), y, name, trained_on, held_out)


def _order(count: int) -> NDArray[np.int64]:
    """Return the rows of a table in the order in which its samples are numbered [count]."""
    return np.random.default_rng(_SHUFFLE_SEED).permutation(count)


def _trained_on(x: NDArray[np.float64], y: NDArray[np.int64], trained: int) -> TrainedOn:
    """Return mean and deviation of the training samples alone: evaluation samples must not leak into the training.

    Raises:
        ConfigError: there are no training samples.
    """
    if not trained:
        raise ConfigError(
            f"spec.trainer.data.evalFraction: leaves none of {len(x)} samples to train on; lower it, or add data"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return TrainedOn(x[:trained].mean(axis=0), x[:trained].std(axis=0), int(y.max()) + 1)


def _check_matches(x: NDArray[np.float64], y: NDArray[np.int64], trained_on: TrainedOn, name: str) -> None:
    field = f"spec.trainer.data.path: {name}"
    if len(trained_on.mean) != x.shape[1]:
        raise ConfigError(
            f"{field}: x has {x.shape[1]} columns, but the model was trained on {len(trained_on.mean)}; choose data "
            "with the same columns"
        )
    if y.max() >= trained_on.classes:
        raise ConfigError(
            f"{field}: y has the class {y.max()}, but the model was trained on {trained_on.classes} classes, numbered "
            "from 0; number them as then"
        )


def _scaled(x: NDArray[np.float64], trained_on: TrainedOn, name: str) -> NDArray[np.float32]:
    """Return features with mean 0 and deviation 1 over the training samples, of any type that they had.

    Raises:
        ConfigError: the features are too large for a deviation in float64.
    """
    mean, deviation = trained_on.mean, trained_on.deviation
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.float32] = ((x - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    if not (np.isfinite(deviation).all() and np.isfinite(scaled).all()):
        column = int(np.flatnonzero(~(np.isfinite(deviation) & np.isfinite(scaled).all(axis=0)))[0])
        raise ConfigError(
            f"spec.trainer.data.path: {name}: column {column} of x has values that are too large to be scaled; divide "
            "it by a constant, or take the logarithm"
        )
    return scaled


def _public(x: NDArray[np.float64], y: NDArray[np.int64], name: str) -> TrainedOn:
    """Return a scaling for private training that follows from no sample: the features stay as they are.

    The brightness of the builtin digits is known to be from 0 to 16, and becomes one from -1 to 1.
    """
    middle = 8.0 if name == "digits" else 0.0
    width = x.shape[1]
    return TrainedOn(np.full(width, middle), np.full(width, middle or 1.0), int(y.max()) + 1)


def _read_archive(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    field = f"spec.trainer.data.path: {path}"
    fix = "write it with numpy.savez(path, x=features, y=classes)"
    try:
        archive = np.load(path, allow_pickle=False)
        # numpy.save writes a single array, which has no names.
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise KeyError("x")
        with archive:
            x, y = archive["x"], archive["y"]
    except OSError as error:
        raise ConfigError(
            f"{field} cannot be read ({error.strerror or error}); mount it in workers.template"
        ) from error
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"{field} is not a NumPy archive with arrays x and y; {fix}") from error
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or len(y) == 0 or x.shape[1] == 0:
        raise ConfigError(
            f"{field}: x must be [samples, features] and y [samples], with at least one of each, not {x.shape} and "
            f"{y.shape}; {fix}"
        )
    # Complex numbers are numbers, too, but have no order.
    real = np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating) or x.dtype == np.bool_
    if not real or not np.isfinite(x).all():
        raise ConfigError(f"{field}: x must hold finite real numbers only; clean the data, then {fix}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ConfigError(f"{field}: y must hold classes, whole numbers from 0; number the classes, then {fix}")
    if y.max() >= MAX_CLASSES:
        raise ConfigError(
            f"{field}: y must hold classes below {MAX_CLASSES:,}, not {y.max()}; number the classes, for example with "
            "numpy.unique(y, return_inverse=True), then write it again"
        )
    return x, y
