"""Numbered samples, from which batches are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.tokenizer import TokenizerFile


class Batch(NamedTuple):
    """Some samples, stacked."""

    inputs: Tensor
    """[N, T] token ids, or [N, features] of a table."""
    targets: Tensor
    """[N, T] token ids, or [N] classes of a table."""
    documents: Tensor | None = None
    """[N, T of the complete window] of 32-bit integers: the number of each position's document within its window, also
    if a context group divides the window; None: attention crosses documents."""


class Subset(NamedTuple):
    """The samples of one source, by number."""

    name: str
    weight: float
    """Share of the samples to train on, in relation to the other sources."""
    train: range
    held_out: range
    """Samples for evaluation only."""


class Samples(Protocol):
    """A data set, the same on every node."""

    @property
    def tokenizer(self) -> TokenizerFile | None:
        """The tokenizer.json of the run; None for bytes and tables."""

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The sources."""

    @property
    def masks_targets(self) -> bool:
        """Whether targets may be `IGNORED`, so that a step has fewer of them than positions."""

    @property
    def count(self) -> int:
        """Number of samples. They are numbered from 0."""

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the data set."""

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Name, fingerprint and held-out samples of each source, which JSON can hold."""

    def read(self, numbers: IntArray, part: int, parts: int) -> Batch:
        """Return samples [N], stacked; of each sequence, part `part` of `parts` equal parts."""

    def __str__(self) -> str:
        """Return a description for the log."""


def prepare(
    config: RunConfig, report: Callable[[float, float], None] | None = None, tokenizer: Path | None = None
) -> Samples:
    """Return the samples of a job; what has to be prepared is prepared once for all pods.

    Args:
        config: configuration of the run.
        report: receives the share of the preparation that is done, and the seconds up to the last progress.
        tokenizer: a tokenizer.json that replaces the one that would be learned: the one that a resumed run has.

    Raises:
        ConfigError: the data is missing, unreadable, or does not match spec.trainer.data.
    """
    if config.trainer.data.source == "table":
        from trainyard_trainer.data.table import load_table

        return load_table(config)
    from trainyard_trainer.data.sources import prepare_sources
    from trainyard_trainer.data.windows import Windows

    sources, end, file = prepare_sources(config, report or (lambda _share, _seconds: None), tokenizer)
    if config.trainer.data.source == "chat":
        from trainyard_trainer.data.chat import Conversations

        return Conversations(sources[0], config, file)
    return Windows(sources, config.trainer.data.sequence_length, config.vocabulary, end, file)
