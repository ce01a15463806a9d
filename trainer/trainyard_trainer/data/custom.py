"""Samples of a data set that `spec.trainer.module` brings."""

from typing import Any, Protocol

import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.samples import Batch, Subset
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.sources import held_out_count
from trainyard_trainer.runtime.errors import ConfigError


class DataSet(Protocol):
    """Numbered samples of a user's own, the same on every worker. A sample has T = spec.trainer.data.sequenceLength
    positions, with one target each.
    """

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the data: other data have another value, and it is the same on every worker."""

    def __len__(self) -> int:
        """Return the number of samples. They are numbered from 0."""

    def read(self, numbers: IntArray) -> tuple[Tensor, Tensor]:
        """Return inputs [N, T, ...] and targets [N, T] of samples [N]; the same number always gives the same sample.

        Targets are classes or token ids; -100 marks a position that neither the loss nor a metric counts.
        """


class CustomSamples:
    """The samples of a `DataSet`, as batches need them."""

    masks_targets = True

    def __init__(self, data: DataSet, config: RunConfig) -> None:
        self._data = data
        self._length = config.trainer.data.sequence_length
        self._held_out = held_out_count(len(data), config.trainer.data.eval_fraction)
        self.tokenizer = None
        """Only the plug-in knows what the numbers mean."""

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._data)

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the data set."""
        return self._data.fingerprint

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The data set as one source, whose last samples are held out."""
        trained = self.count - self._held_out
        return (Subset("data", 1.0, range(trained), range(trained, self.count)),)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Fingerprint and held-out samples, which JSON can hold."""
        held_out = [self.count - self._held_out, self.count]
        return [{"name": "data", "fingerprint": self.fingerprint, "samples": self.count, "heldOut": held_out}]

    def read(self, numbers: IntArray, part: int, parts: int) -> Batch:
        """Return inputs and targets of samples [N], stacked; of each sequence, part `part` of `parts` equal parts.

        Raises:
            ConfigError: the data set has returned other shapes.
        """
        inputs, targets = self._data.read(numbers)
        shape = (len(numbers), self._length)
        if inputs.shape[:2] != shape or targets.shape != shape:
            raise ConfigError(
                f"spec.trainer.module: its data set has returned inputs {list(inputs.shape)} and targets "
                f"{list(targets.shape)}, but {len(numbers)} samples of sequenceLength {self._length} have inputs "
                f"[{len(numbers)}, {self._length}, ...] and targets [{len(numbers)}, {self._length}]; correct its "
                "read, or spec.trainer.data.sequenceLength"
            )
        size = self._length // parts
        own = slice(part * size, (part + 1) * size)
        return Batch(inputs[:, own], targets[:, own].to(torch.int64))

    def __str__(self) -> str:
        return f"{self.count:,} samples of {type(self._data).__name__}"
