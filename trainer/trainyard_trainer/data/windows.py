"""Samples of token ids: windows of some sources, each with samples to train on and samples that are held out."""

from typing import Any

import numpy as np
import torch

from trainyard_trainer.data.samples import Batch, Subset
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.sources import WindowedSource
from trainyard_trainer.data.token_set import TokenSet, TokenSpan
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.runtime.errors import ConfigError


class Windows:
    """Windows of `length` tokens; the target of each token is the next one.

    Neighbouring windows share one token: the last target of a window is the first input of the next. Windows are
    numbered source by source: those of its tokens, then those of its other held-out tokens.
    """

    masks_targets = False

    def __init__(
        self,
        sources: list[WindowedSource],
        length: int,
        vocabulary: int,
        end: int | None = None,
        tokenizer: TokenizerFile | None = None,
    ) -> None:
        """Number the windows.

        Args:
            sources: the sources.
            length: tokens of a window.
            vocabulary: every token id is lower.
            end: id of the token that ends a document, if attention must not cross it; None: it may.
            tokenizer: the tokenizer.json of the run, if there is one.
        """
        self.tokenizer = tokenizer
        self._length, self._vocabulary, self._end = length, vocabulary, end
        self._given = sources
        self._sets: list[TokenSet] = []
        firsts: list[int] = []
        subsets: list[Subset] = []
        first = 0
        for source in sources:
            own = (source.tokens.count - 1) // length
            other = 0 if source.eval_tokens is None else (source.eval_tokens.count - 1) // length
            # Both kinds of held-out windows follow those to train on.
            trained = own - source.held_out_windows
            train = range(first, first + trained)
            subsets.append(Subset(source.name, source.weight, train, range(train.stop, first + own + other)))
            for tokens, count in ((source.tokens, own), (source.eval_tokens, other)):
                if tokens is not None and count:
                    self._sets.append(tokens)
                    firsts.append(first)
                    first += count
        self.subsets = tuple(subsets)
        self.count = first
        self._firsts = np.array(firsts, dtype=np.int64)

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the tokens of all sources, in their order."""
        combined = self._given[0].tokens.fingerprint
        for source in self._given[1:]:
            combined = (combined * 1_000_003 + source.tokens.fingerprint) % (1 << 63)
        return combined

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Name, fingerprint, tokens and held-out windows of each source, which JSON can hold."""
        return [
            {
                "name": subset.name,
                "fingerprint": source.tokens.fingerprint,
                "tokens": source.tokens.count,
                "weight": subset.weight,
                "heldOut": [subset.held_out.start - subset.train.start, subset.held_out.stop - subset.train.start],
                "evalFingerprint": None if source.eval_tokens is None else source.eval_tokens.fingerprint,
            }
            for source, subset in zip(self._given, self.subsets, strict=True)
        ]

    def read(self, numbers: IntArray, part: int, parts: int) -> Batch:
        """Return token ids and their successors, each [N, length / parts]: part `part` of `parts` of each window.

        With isolated documents also the number of each position's document within its window, [N, length].

        Raises:
            ConfigError: a token id is not in the vocabulary.
        """
        ids = np.empty((len(numbers), self._length + 1), dtype=np.int64)
        places = np.searchsorted(self._firsts, numbers, side="right") - 1
        for row, number, place in zip(ids, numbers.tolist(), places.tolist(), strict=True):
            self._sets[place].read((number - int(self._firsts[place])) * self._length, row)
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            raise ConfigError(
                f"spec.trainer.data.vocabSize: the data has the token id {ids.max()}, and the vocabulary "
                f"{self._vocabulary} entries; raise it to the largest id + 1, or correct tokenType"
            )
        size = self._length // parts
        own = torch.from_numpy(ids[:, part * size : (part + 1) * size + 1])
        documents = None
        if self._end is not None:
            # The token that ends a document belongs to it.
            ended = np.cumsum(ids[:, :-1] == self._end, axis=1, dtype=np.int32)
            documents = torch.from_numpy(np.pad(ended[:, :-1], ((0, 0), (1, 0))))
        return Batch(own[:, :-1], own[:, 1:], documents)

    def locate(self, number: int) -> list[TokenSpan]:
        """Return where the tokens of a sample are."""
        place = int(np.searchsorted(self._firsts, number, side="right")) - 1
        tokens = self._sets[place]
        index = next(i for i, source in enumerate(self._given) if tokens in (source.tokens, source.eval_tokens))
        start = (number - int(self._firsts[place])) * self._length
        return [TokenSpan(index, tokens, tokens is self._given[index].eval_tokens, start, self._length)]

    def __str__(self) -> str:
        tokens = sum(source.tokens.count for source in self._given)
        several = f" of {len(self._given)} sources" if len(self._given) > 1 else ""
        return f"{tokens:,} tokens{several} in windows of {self._length:,}"
