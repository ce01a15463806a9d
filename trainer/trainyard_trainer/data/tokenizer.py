"""Tokenizers: text to token ids and back."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trainyard.resource.datasets import BYTE_VOCABULARY
from trainyard_trainer.data.documents import Piece
from trainyard_trainer.data.word_cache import WordCache
from trainyard_trainer.runtime.errors import ConfigError

BYTE_END = 255
"""End-of-document token of the byte tokenizer: a byte that UTF-8 never contains."""
BPE_END = "<|endoftext|>"
"""End-of-document token of a tokenizer that is trained here."""
USUAL_ENDS = (BPE_END, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""End-of-document tokens of common tokenizers."""


class TokenizerFile(NamedTuple):
    """A tokenizer.json, which belongs to the run."""

    path: Path
    sha256: str
    """SHA-256 of its content, in hexadecimal digits."""
    chat_template: str | None = None
    """Template with which it was used for conversations."""


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    size: int
    """Largest token id + 1."""
    dtype: str
    """Type of the numbers that `encode` returns."""
    end: int | None
    """Id of the token that ends a document; None: documents follow each other without one."""

    def encode(self, piece: Piece) -> bytes:
        """Return the token ids of a piece of a document as numbers of type `dtype`, in native byte order."""

    @property
    def file(self) -> TokenizerFile | None:
        """Its tokenizer.json; None for bytes."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""


def dtype_for(size: int) -> str:
    """Return the smallest type of unsigned integers for token ids below a size."""
    return "uint8" if size <= 1 << 8 else "uint16" if size <= 1 << 16 else "uint32"


class ByteTokenizer:
    """One token per byte of UTF-8; needs no training."""

    def __init__(self, *, separates: bool) -> None:
        self.size, self.dtype = BYTE_VOCABULARY, dtype_for(BYTE_VOCABULARY)
        self.end = BYTE_END if separates else None
        self.file = None
        self._end = bytes([BYTE_END]) if separates else b""

    def encode(self, piece: Piece) -> bytes:
        """Return the bytes of a piece."""
        return piece.text.encode() + (self._end if piece.last else b"")

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes; an incomplete character becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")


class JsonTokenizer:
    """A tokenizer.json of the Hugging Face library tokenizers.

    Special tokens inside the text are encoded as any other text, so that no document can contain the end of one.
    """

    def __init__(self, path: Path, *, separates: bool, end_token: str | None = None) -> None:
        """Load a tokenizer.

        Args:
            path: path of the tokenizer.json.
            separates: whether documents get the tokens that the tokenizer adds before a text, and end with a token.
            end_token: the token that ends a document; None: see spec.trainer.data.endToken.

        Raises:
            ConfigError: the file is missing or is not a tokenizer, or has no token that ends a document.
        """
        self._encoder, self.file, self.size = load_encoder(path)
        self._encoder.encode_special_tokens = True
        self.dtype = dtype_for(self.size)
        self._dtype = np.dtype(self.dtype)
        self.end = self._find_end(path, end_token) if separates else None
        self._before, self._after = self._added(separates)
        self._words = WordCache(json.loads(path.read_text("utf-8")), self._encode)

    def encode(self, piece: Piece) -> bytes:
        """Return the token ids of a piece."""
        before = self._before if piece.first else b""
        return before + self._words.encode(piece.text) + (self._after if piece.last else b"")

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._encoder.decode(ids, skip_special_tokens=False))

    def token(self, token_id: int) -> str:
        """Return the text of one token as the tokenizer.json has it, which is a name for a special one."""
        return str(self._encoder.id_to_token(token_id))

    def _encode(self, text: str) -> bytes:
        return np.asarray(self._encoder.encode(text, add_special_tokens=False).ids, self._dtype).tobytes()

    def _added(self, separates: bool) -> tuple[bytes, bytes]:
        """Return the ids that come before and after a document."""
        if not separates:
            return b"", b""
        sample = self._encoder.encode("a")
        ids, special = np.asarray(sample.ids, self._dtype), np.asarray(sample.special_tokens_mask, bool)
        text = np.flatnonzero(~special)
        # As the tokenizer says: most add a token at the beginning or none.
        before, after = ids[: text[0]], ids[text[-1] + 1 :]
        if not len(after) or after[-1] != self.end:
            after = np.append(after, np.asarray([self.end], self._dtype))
        return before.tobytes(), after.tobytes()

    def _find_end(self, path: Path, end_token: str | None) -> int:
        wanted = end_token or _configured_end(path.with_name("tokenizer_config.json"))
        if wanted is not None:
            found = self._encoder.token_to_id(wanted)
            if found is None:
                raise ConfigError(f"spec.trainer.data.endToken: {path} has no token {wanted}; name one that it has")
            return int(found)
        for usual in USUAL_ENDS:
            if (found := self._encoder.token_to_id(usual)) is not None:
                return int(found)
        raise ConfigError(
            f"spec.trainer.data.endToken: {path} has none of the usual ones ({', '.join(USUAL_ENDS)}); name the token "
            "that ends a document, or set spec.trainer.data.documents: joined"
        )


def load_encoder(path: Path) -> tuple[Any, TokenizerFile, int]:
    """Return the tokenizer of a tokenizer.json, its file, and the largest token id + 1.

    Raises:
        ConfigError: the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer as Encoder

    field = f"spec.trainer.data.tokenizerFile: {path}"
    try:
        content = path.read_text("utf-8")
        encoder = Encoder.from_str(content)
    except OSError as error:
        raise ConfigError(f"{field} cannot be read in the worker ({error.strerror}); mount it") from error
    except Exception as error:  # tokenizers raises nothing more specific
        raise ConfigError(f"{field} is not a tokenizer.json ({error}); correct the path") from error
    encoder.no_truncation()
    encoder.no_padding()
    size = max(encoder.get_vocab(with_added_tokens=True).values()) + 1
    return encoder, TokenizerFile(path, hashlib.sha256(content.encode()).hexdigest()), size


def learn_bpe(texts: Iterator[str], vocab_size: int, path: Path) -> None:
    """Learn byte-pair encoding over bytes (Sennrich et al., 2016; Radford et al., 2019), which encodes any text.

    Args:
        texts: text to learn from.
        vocab_size: upper limit of the entries, among which is BPE_END.
        path: where to store the result, which depends on the text alone.
    """
    from tokenizers import Tokenizer as Encoder
    from tokenizers import decoders, models, pre_tokenizers, trainers

    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[BPE_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    encoder.train_from_iterator(texts, trainer)
    encoder.save(str(path))


def read_ids(encoded: bytes, size: int) -> NDArray[Any]:
    """Return what `Tokenizer.encode` has encoded as an array; `size` is that of the tokenizer."""
    return np.frombuffer(encoded, dtype_for(size))


def _configured_end(path: Path) -> str | None:
    """Return the eos_token of a tokenizer_config.json, if there is one."""
    try:
        token = json.loads(path.read_text("utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
