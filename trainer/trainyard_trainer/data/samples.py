"""Numbered samples on this node, from which batches are read."""

from typing import Protocol

from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.sampling import IntArray


class Samples(Protocol):
    """A data set, the same on every node."""

    @property
    def count(self) -> int:
        """Number of samples. They are numbered from 0."""

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the data set."""

    def read(self, numbers: IntArray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of samples [N], stacked; of each sequence, part `part` of `parts` equal parts."""

    def __str__(self) -> str:
        """Return a description for the log."""


def prepare(config: RunConfig) -> Samples:
    """Return the samples of a job, which are prepared once per node.

    Raises:
        ConfigError: the data is missing, unreadable, or does not match spec.trainer.data.
    """
    if config.trainer.data.source == "table":
        from trainyard_trainer.data.table import load_table

        return load_table(config)
    from trainyard_trainer.data.tokens import Windows, prepare_tokens

    return Windows(prepare_tokens(config), config.trainer.data.sequence_length)
