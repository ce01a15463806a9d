"""Numbered samples on this node: what the batches are made of."""

from typing import Protocol

from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.sampling import IntArray


class Samples(Protocol):
    """A data set, the same on every node."""

    @property
    def count(self) -> int:
        """Number of samples; they are numbered from 0."""

    @property
    def fingerprint(self) -> int:
        """63 bits that tell data sets apart."""

    def read(self, numbers: IntArray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some samples, stacked. Of sequences it is one of so many equal parts."""

    def __str__(self) -> str:
        """What it is, for the log."""


def prepare(config: RunConfig) -> Samples:
    """The samples of a job, prepared once per node.

    Raises:
        ConfigError: the data is missing, unreadable, or not what spec.trainer.data says.
    """
    if config.trainer.data.source == "table":
        from trainyard_trainer.data.table import load_table

        return load_table(config)
    from trainyard_trainer.data.tokens import Windows, prepare_tokens

    return Windows(prepare_tokens(config), config.trainer.data.sequence_length)
