"""Numbered samples on this node, from which batches are read."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.tokenizer import TokenizerFile


class Samples(Protocol):
    """A data set, the same on every node."""

    @property
    def count(self) -> int:
        """Number of samples. They are numbered from 0."""

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the data set."""

    @property
    def tokenizer(self) -> TokenizerFile | None:
        """The file that holds the tokenizer; None if the data need none from a file."""

    def read(self, numbers: IntArray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of samples [N], stacked; of each sequence, part `part` of `parts` equal parts."""

    def __str__(self) -> str:
        """Return a description for the log."""


def prepare(config: RunConfig, tokenizer: Path | None = None) -> Samples:
    """Return the samples of a job, which are prepared once per node.

    `tokenizer`: a tokenizer.json that replaces the one that would be learned: the one that a resumed run has.

    Raises:
        ConfigError: the data is missing, unreadable, or does not match spec.trainer.data.
    """
    if config.trainer.data.source == "table":
        from trainyard_trainer.data.table import load_table

        return load_table(config)
    from trainyard_trainer.data.tokens import Windows, prepare_tokens

    return Windows(prepare_tokens(config, tokenizer), config.trainer.data.sequence_length)
