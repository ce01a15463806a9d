"""Where samples come from: the files, lines and rows that they were made of, and their text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.resource.datasets import DataSource
from trainyard_trainer.data.documents import Documents, JsonLines, Piece, open_documents
from trainyard_trainer.data.encoding import TokenizerChoice
from trainyard_trainer.data.preparation import grouped_parts
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.table import Table
from trainyard_trainer.data.token_set import TokenFile
from trainyard_trainer.data.tokenizer import Tokenizer, read_ids
from trainyard_trainer.data.windows import Windows

MAX_PLACES = 20
"""Most documents of one sample that are named."""


class Origin(ApiModel):
    """Where a sample comes from."""

    source: str
    """Name of its source; `data` if there is only one."""
    places: tuple[str, ...] = ()
    """Documents, rows or tokens that it holds parts of, in order: a file, and where in it. Empty for a data set of the
    user's own."""
    text: str | None = None
    """Its text; None if there is none, or no tokenizer."""


def origins(samples: Samples, numbers: Sequence[int], config: RunConfig) -> list[Origin]:
    """Return where some samples, by number, come from. Documents are tokenized again to find their place in a file.

    Raises:
        ConfigError: the data is unreadable.
    """
    if isinstance(samples, Table):
        path = config.trainer.data.path or f"builtin:{config.trainer.data.builtin}"
        rows = [(samples.row(number), int(samples.classes[number])) for number in numbers]
        return [Origin(source="data", places=(f"{path}, row {row}",), text=f"class {label}") for row, label in rows]
    if not isinstance(samples, Windows):
        return [Origin(source="data") for _ in numbers]
    found = _WindowOrigins(samples, config)
    return [found.of(number) for number in numbers]


class _WindowOrigins:
    """Where windows of tokens come from."""

    def __init__(self, windows: Windows, config: RunConfig) -> None:
        self._windows, self._data = windows, config.trainer.data
        self._length = self._data.sequence_length
        self._parts: dict[str, list[tuple[int, Piece]]] = {}
        """Pieces of the documents of each file of tokens, with the number of their first token in the file."""
        file = windows.tokenizer
        encoded = any(source.source != "tokens" for source in self._data.each_source)
        self._tokenizer: Tokenizer | None = None
        if encoded or file is not None:
            path = None if file is None else str(file.path)
            self._tokenizer = TokenizerChoice(path, self._data.documents != "joined", self._data.end_token).load()

    def of(self, number: int) -> Origin:
        """Return where a sample comes from."""
        index, tokens, start = self._windows.locate(number)
        source = self._data.each_source[index]
        ids = np.empty(self._length, dtype=np.int64)
        tokens.read(start, ids)
        places: list[str] = []
        for file, first, last in tokens.locate(start, self._length):
            # Tokens that were given are numbered; documents that became tokens are named by their own files.
            if source.source == "tokens":
                places.append(f"{file.path}, tokens {first} to {last}")
            else:
                held_out = number not in self._windows.subsets[index].train and source.eval_path is not None
                given = source.replace(path=source.eval_path) if held_out else source
                places += self._documents(given, file, first, last)
        text = None if self._tokenizer is None else self._tokenizer.decode(ids.tolist())
        return Origin(source=source.name, places=tuple(dict.fromkeys(places))[:MAX_PLACES], text=text)

    def _documents(self, source: DataSource, file: TokenFile, first: int, last: int) -> Iterator[str]:
        """Yield the places of the documents that the tokens from `first` to `last` of a file come from."""
        key = str(file.path)
        documents = open_documents(source, "spec.trainer.data.path")
        if key not in self._parts:
            self._parts[key] = list(self._pieces(documents, int(file.path.stem)))
        pieces = self._parts[key]
        for (start, piece), (end, _) in zip(pieces, [*pieces[1:], (file.count, None)], strict=True):
            if start <= last and end > first:
                yield _line(documents, piece.where)

    def _pieces(self, documents: Documents, task: int) -> Iterator[tuple[int, Piece]]:
        """Yield the pieces of the documents that have become one file of tokens, without their text."""
        assert self._tokenizer is not None
        count = 0
        for part in grouped_parts(documents)[task]:
            for piece in documents.read(part):
                yield count, piece._replace(text="")
                count += len(read_ids(self._tokenizer.encode(piece), self._tokenizer.size))


def _line(documents: Documents, where: str) -> str:
    """Return a place with the number of a line, from 1, instead of a byte, where documents are lines."""
    path, found, position = where.rpartition(", byte ")
    if not found or not isinstance(documents, JsonLines):
        return where
    with documents.open(path) as file:
        left, lines = int(position), 1
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            left -= len(chunk)
            lines += chunk.count(b"\n")
    return f"{Path(path)}, line {lines}"
