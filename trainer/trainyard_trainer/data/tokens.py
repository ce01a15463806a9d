"""Tokens on disk, prepared once per node, and the samples that are read from them."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard.protocol.constants import ENV_CACHE
from trainyard.run_record import TOKENIZER_FILE
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.data.text import Text, find_text
from trainyard_trainer.data.tokenizer import TokenizerFile, build_tokenizer
from trainyard_trainer.runtime.errors import ConfigError

_FORMAT = 1
"""Part of a cache key. Raise it when the same text would give other tokens than before."""


@dataclass(frozen=True)
class TokenFile:
    """Token ids in a flat file of unsigned integers."""

    path: Path
    dtype: str
    count: int
    digest: str
    """SHA-256 of the tokens."""

    @property
    def fingerprint(self) -> int:
        """63 bits of the digest."""
        return int(self.digest[:16], 16) >> 1

    def read(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the tokens [count], mapped into memory rather than loaded."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))


def prepare_tokens(config: RunConfig, known: Path | None = None) -> TokenFile:
    """Tokenize the text, or return the tokens of an earlier run on this node.

    Any number of processes may call this at the same time: one does the work, the others wait for it.

    `known`: the tokenizer of the run that is resumed, if its data need one from a file.

    Raises:
        ConfigError: the text is missing, unreadable, not UTF-8, or shorter than one sample.
    """
    text = find_text(config.trainer.data)
    folder = _make_folder(cache_folder() / _cache_key(config, text, known))
    index = folder / "index.json"
    with _locked(folder / "lock"):
        if not index.exists():
            _write(index, json.dumps(_tokenize(config, text, folder, known)))
    tokens = TokenFile(path=folder / "tokens.bin", **json.loads(index.read_text()))
    needed = config.trainer.data.sequence_length + 1
    if tokens.count < needed:
        raise ConfigError(
            f"{text.field}: {text.root} gives {tokens.count} tokens, and one sample needs {needed} "
            "(sequenceLength + 1); add text, or lower spec.trainer.data.sequenceLength"
        )
    return tokens


def cache_folder() -> Path:
    """Return the folder for prepared data on this node."""
    return Path(os.environ.get(ENV_CACHE) or Path(tempfile.gettempdir(), f"trainyard-{os.getuid()}"))


def _make_folder(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{ENV_CACHE}: {path} cannot be created in the worker ({error.strerror}); mount an emptyDir at /tmp via "
            f"spec.workers.template, or set {ENV_CACHE} in spec.env to a folder that can be written"
        ) from error
    return path


def _cache_key(config: RunConfig, text: Text, known: Path | None) -> str:
    data = config.trainer.data
    what = [_FORMAT, data.tokenizer, config.vocabulary, text.identity(), _digest(known) if known else None]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _tokenize(config: RunConfig, text: Text, folder: Path, known: Path | None) -> dict[str, Any]:
    vocabulary = config.vocabulary
    dtype = "uint8" if vocabulary <= 1 << 8 else "uint16" if vocabulary <= 1 << 16 else "uint32"
    tokenizer = build_tokenizer(config.trainer.data, text.pieces, folder, known)
    digest, count = hashlib.sha256(), 0
    with (folder / "tokens.part").open("wb") as file:
        for piece in text.pieces():
            ids = tokenizer.encode(piece).astype(dtype, copy=False).tobytes()
            digest.update(ids)
            count += file.write(ids)
    (folder / "tokens.part").rename(folder / "tokens.bin")
    return {"dtype": dtype, "count": count // np.dtype(dtype).itemsize, "digest": digest.hexdigest()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which the kernel releases when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


class Windows:
    """Samples of text: windows of `length` tokens; the target of each token is the next one.

    Neighbouring windows share one token: the last target of a window is the first input of the next.
    """

    def __init__(self, tokens: TokenFile, length: int) -> None:
        self._file = tokens
        self._tokens = tokens.read()
        self._length = length

    @property
    def count(self) -> int:
        """Number of windows."""
        return (self._file.count - 1) // self._length

    @property
    def fingerprint(self) -> int:
        """63 bits of the digest of all tokens."""
        return self._file.fingerprint

    @property
    def tokenizer(self) -> TokenizerFile | None:
        """The file that holds the tokenizer; None for bytes."""
        path = self._file.path.with_name(TOKENIZER_FILE)
        return TokenizerFile(path, _digest(path)) if path.exists() else None

    def read(self, numbers: IntArray, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """Return token ids and their successors, each [N, length / parts]: part `part` of `parts` of each window."""
        size = self._length // parts
        offsets = part * size + np.arange(size + 1)
        ids = torch.from_numpy(self._tokens[numbers[:, None] * self._length + offsets].astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def __str__(self) -> str:
        return f"{self._file.count:,} tokens in windows of {self._length:,}"
