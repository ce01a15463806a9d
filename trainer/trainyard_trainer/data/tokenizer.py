"""Tokenizers: text to token ids and back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trainyard.resource.datasets import Data
from trainyard.run_record import TOKENIZER_FILE

BYTE_VOCABULARY = 256


class TokenizerFile(NamedTuple):
    """A tokenizer.json, which belongs to the run."""

    path: Path
    sha256: str
    """SHA-256 of its content, in hexadecimal digits."""


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    def encode(self, text: str) -> NDArray[np.uint32] | NDArray[np.uint8]:
        """Return the token ids of a text."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""


class ByteTokenizer:
    """One token per byte of UTF-8; needs no training."""

    def encode(self, text: str) -> NDArray[np.uint8]:
        """Return the bytes of a text."""
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes; an incomplete character becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")


class BpeTokenizer:
    """Byte-pair encoding over bytes (Sennrich et al., 2016; Radford et al., 2019), which encodes any text."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Encoder

        self._encoder = Encoder.from_file(str(path))

    @classmethod
    def train(cls, pieces: Iterator[str], vocab_size: int, path: Path) -> "BpeTokenizer":
        """Learn up to vocab_size entries from a text, and store them at a path; the result is deterministic."""
        from tokenizers import Tokenizer as Encoder
        from tokenizers import decoders, models, pre_tokenizers, trainers

        encoder = Encoder(models.BPE())
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        encoder.train_from_iterator(pieces, trainer)
        encoder.save(str(path))
        return cls(path)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the token ids of a text."""
        return np.asarray(self._encoder.encode(text).ids, dtype=np.uint32)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        return str(self._encoder.decode(ids))


def build_tokenizer(config: Data, pieces: Callable[[], Iterator[str]], folder: Path, known: Path | None) -> Tokenizer:
    """Return the tokenizer of spec.trainer.data; one that must be trained is stored in the folder.

    `known`: the tokenizer of the run that is resumed, which is used instead of training another one.
    """
    if config.tokenizer == "byte":
        return ByteTokenizer()
    path = folder / TOKENIZER_FILE
    if known is not None:
        path.write_bytes(known.read_bytes())
        return BpeTokenizer(path)
    return BpeTokenizer.train(pieces(), config.vocab_size, path)
