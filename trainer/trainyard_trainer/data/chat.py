"""Samples of conversations: inputs are all tokens, targets only those that the assistant has written."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainyard.config import RunConfig
from trainyard_trainer.data.chat_template import BEGINS, LEARNED, TOKEN_ID
from trainyard_trainer.data.samples import IGNORED, Batch, Subset
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.sources import WindowedSource, held_out_count
from trainyard_trainer.data.token_set import TokenSet, TokenSpan
from trainyard_trainer.data.tokenizer import TokenizerFile
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError

SCANNED = 1 << 22
"""Tokens that are looked at at a time."""
_PATH, _EVAL_PATH = "spec.trainer.data.path", "spec.trainer.data.evalPath"


class Conversations:
    """Conversations, one in each sample, or with `documents: isolated` as many neighbours as fit.

    A conversation that is longer than a sample loses its end. What follows the last conversation of a sample is
    padding: tokens 0 without targets. Samples for training come first, then those that are held out.
    """

    masks_targets = True

    def __init__(self, source: WindowedSource, config: RunConfig, tokenizer: TokenizerFile | None = None) -> None:
        """Divide the conversations into samples.

        Raises:
            ConfigError: there is nothing to learn, or nothing is left to train on.
        """
        data = config.trainer.data
        self.tokenizer = tokenizer
        self._length, self._packs = data.sequence_length, data.documents == "isolated"
        self._sets = [_Set.of(source.tokens, self._length, self._packs, _PATH)]
        if source.eval_tokens is not None:
            self._sets.append(_Set.of(source.eval_tokens, self._length, self._packs, _EVAL_PATH))
        own = len(self._sets[0].samples)
        held_out = held_out_count(own, data.eval_fraction)
        if held_out >= own:
            raise ConfigError(
                f"spec.trainer.data.evalFraction: {data.eval_fraction} leaves none of {own} samples to train on; lower "
                "it, or add conversations"
            )
        self._trained = own - held_out
        self.count = sum(len(each.samples) for each in self._sets)

    @property
    def fingerprint(self) -> int:
        """63 bits that identify the samples: the tokens to train on, and how they are divided."""
        divided = 2 * self._length + self._packs
        return (self._sets[0].tokens.fingerprint * 1_000_003 + divided) % (1 << 63)

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The conversations as one source."""
        return (Subset("data", 1.0, range(self._trained), range(self._trained, self.count)),)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Fingerprint, conversations and held-out samples, which JSON can hold."""
        return [
            {
                "name": "data",
                "fingerprint": self._sets[0].tokens.fingerprint,
                "conversations": len(self._sets[0].starts),
                "heldOut": [self._trained, self.count],
                "evalFingerprint": self._sets[1].tokens.fingerprint if len(self._sets) > 1 else None,
            }
        ]

    def read(self, numbers: IntArray, part: int, parts: int) -> Batch:
        """Return inputs and targets of samples [N], each [N, length / parts]: part `part` of `parts` of each sample.

        With several conversations in a sample also the number of each position's conversation, [N, length].
        """
        shape = (len(numbers), self._length)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int32)
        for row, number in enumerate(numbers.tolist()):
            column = 0
            for position, stored in enumerate(self._conversations(number)):
                end = column + len(stored) - 1
                ids = stored & TOKEN_ID
                inputs[row, column:end] = ids[:-1]
                targets[row, column:end] = np.where(stored[1:] & LEARNED, ids[1:], IGNORED)
                # Padding belongs to a conversation of its own.
                documents[row, column:end], documents[row, end:] = position, position + 1
                column = end
        size = self._length // parts
        own = slice(part * size, (part + 1) * size)
        isolation = torch.from_numpy(documents) if self._packs else None
        return Batch(torch.from_numpy(inputs[:, own]), torch.from_numpy(targets[:, own]), isolation)

    def _conversations(self, number: int) -> Iterator[IntArray]:
        """Yield the stored tokens of the conversations of a sample, each as far as it fits."""
        for span in self.locate(number):
            stored = np.empty(span.size, dtype=np.int64)
            span.tokens.read(span.start, stored)
            yield stored

    def locate(self, number: int) -> list[TokenSpan]:
        """Return where the tokens of the conversations of a sample are."""
        first = len(self._sets[0].samples)
        held_out = number >= first
        source, index = self._sets[held_out], number - first * held_out
        begin, end = source.samples[index]
        places = zip(source.starts[begin:end].tolist(), source.sizes[begin:end].tolist(), strict=True)
        return [TokenSpan(0, source.tokens, held_out, start, size) for start, size in places]

    def __str__(self) -> str:
        conversations = sum(len(each.starts) for each in self._sets)
        return f"{conversations:,} conversations in {self.count:,} samples of {self._length:,} tokens"


class _Set(NamedTuple):
    """Conversations in a set of tokens."""

    tokens: TokenSet
    starts: IntArray
    """Number of the first token of each conversation."""
    sizes: IntArray
    """Tokens of each conversation that are used: one more than there are positions in a sample at most."""
    samples: IntArray
    """The conversations of each sample [samples, 2]: the first one, and the one behind the last."""

    @classmethod
    def of(cls, tokens: TokenSet, length: int, packs: bool, field: str) -> "_Set":
        """Find the conversations, and divide them into samples of `length` positions.

        Raises:
            ConfigError: the assistant has written nothing that fits into a sample.
        """
        starts, learned = _scan(tokens, length)
        sizes = np.diff(starts, append=tokens.count)
        cut, empty = int((sizes > length + 1).sum()), int((learned == 0).sum())
        if cut or empty:
            log.logger.warning(
                "%s: of %d conversations %d are longer than sequenceLength (%d) and lose their end; %d are left out, "
                "since nothing that the assistant has written is left",
                field,
                len(starts),
                cut,
                length,
                empty,
            )
        if empty == len(starts):
            raise ConfigError(
                f"{field}: in none of {len(starts)} conversations the assistant writes anything within the first "
                f"{length} tokens (sequenceLength); add conversations, or raise spec.trainer.data.sequenceLength"
            )
        starts, sizes = starts[learned > 0], np.minimum(sizes, length + 1)[learned > 0]
        firsts = _packed(sizes, length) if packs else np.arange(len(starts), dtype=np.int64)
        return cls(tokens, starts, sizes, np.stack([firsts, np.append(firsts[1:], len(starts))], axis=1))


def _scan(tokens: TokenSet, length: int) -> tuple[IntArray, IntArray]:
    """Return where each conversation begins, and how many targets it has in a sample of `length` positions."""
    starts: list[NDArray[Any]] = []
    found: list[NDArray[Any]] = []
    for first in range(0, tokens.count, SCANNED):
        stored = np.empty(min(SCANNED, tokens.count - first), dtype=np.int64)
        tokens.read(first, stored)
        starts.append(np.flatnonzero(stored & BEGINS) + first)
        found.append(np.flatnonzero(stored & LEARNED) + first)
    start_C = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
    learned = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    owner = np.searchsorted(start_C, learned, side="right") - 1
    # The first token is no target, and there are `length` targets behind it.
    place = learned - start_C[owner]
    counted = np.bincount(owner[(place > 0) & (place <= length)], minlength=len(start_C))
    return start_C.astype(np.int64), counted.astype(np.int64)


def _packed(sizes: IntArray, length: int) -> IntArray:
    """Return the first conversation of each sample, if each holds as many neighbours as fit; all sizes fit."""
    firsts: list[int] = []
    space = 0
    for number, size in enumerate(sizes.tolist()):
        # The last token of a conversation is a target only.
        if size - 1 > space or not firsts:
            firsts.append(number)
            space = length
        space -= size - 1
    return np.array(firsts, dtype=np.int64)
