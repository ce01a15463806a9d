"""Numbered samples, from which batches are read."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.tokenizer import TokenizerFile

IGNORED = -100
"""A target that no loss and no metric counts (as in torch.nn.functional.cross_entropy)."""


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
