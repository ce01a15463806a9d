"""Where samples come from: the files, lines and rows that they were made of, and their text."""

from collections.abc import Iterator, Sequence

import numpy as np

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.resource.datasets import DataSource
from trainyard_trainer.data.chat import Conversations
from trainyard_trainer.data.chat_template import TOKEN_ID
from trainyard_trainer.data.documents import Documents, open_documents
from trainyard_trainer.data.preparation import grouped_parts
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.sources import tokenizer_choice
from trainyard_trainer.data.table import Table
from trainyard_trainer.data.token_set import TokenFile, TokenSpan
from trainyard_trainer.data.tokenizer import Tokenizer
from trainyard_trainer.data.windows import Windows

_FIELD = "spec.trainer.data.path"
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
    if not isinstance(samples, Windows | Conversations):
        return [Origin(source="data") for _ in numbers]
    found = _TokenOrigins(samples, config)
    return [found.of(number) for number in numbers]


class _TokenOrigins:
    """Where samples of tokens come from."""

    def __init__(self, samples: Windows | Conversations, config: RunConfig) -> None:
        self._samples, self._data = samples, config.trainer.data
        self._mask = TOKEN_ID if isinstance(samples, Conversations) else -1
        self._pieces: dict[str, list[tuple[int, object]]] = {}
        """Pieces of the documents that have become a file of tokens: first token, and place."""
        file = samples.tokenizer
        encodes = any(source.source != "tokens" for source in self._data.each_source)
        self._tokenizer: Tokenizer | None = None
        if encodes or file is not None:
            self._tokenizer = tokenizer_choice(self._data, None if file is None else file.path).load()

    def of(self, number: int) -> Origin:
        """Return where a sample comes from."""
        spans = self._samples.locate(number)
        source = self._data.each_source[spans[0].source]
        places = [place for span in spans for place in self._places(source, span)]
        text = None if self._tokenizer is None else "".join(self._text(self._tokenizer, span) for span in spans)
        return Origin(source=source.name, places=tuple(dict.fromkeys(places))[:MAX_PLACES], text=text)

    def _text(self, tokenizer: Tokenizer, span: TokenSpan) -> str:
        ids = np.empty(span.size, dtype=np.int64)
        span.tokens.read(span.start, ids)
        return tokenizer.decode((ids & self._mask).tolist())

    def _places(self, source: DataSource, span: TokenSpan) -> Iterator[str]:
        for file, first, last in span.tokens.locate(span.start, span.size):
            # Tokens that were given are numbered; documents that became tokens are named by their own files.
            if source.source == "tokens":
                yield f"{file.path}, tokens {first} to {last}"
            else:
                given = source.replace(path=source.eval_path) if span.held_out else source
                yield from self._documents(given, file, first, last)

    def _documents(self, source: DataSource, file: TokenFile, first: int, last: int) -> Iterator[str]:
        """Yield the places of the documents that the tokens from `first` to `last` of a file come from."""
        key = str(file.path)
        if key not in self._pieces:
            documents = open_documents(source, _FIELD)
            self._pieces[key] = list(self._encoded(documents, int(file.path.stem)))
        pieces = self._pieces[key]
        ends = [start for start, _ in pieces[1:]] + [file.count]
        for (start, place), end in zip(pieces, ends, strict=True):
            if start <= last and end > first:
                # Some places are for errors, and begin with the field.
                yield str(place).removeprefix(f"{_FIELD}: ")

    def _encoded(self, documents: Documents, task: int) -> Iterator[tuple[int, object]]:
        """Yield the first token and the place of each piece of the documents that have become one file of tokens."""
        assert self._tokenizer is not None
        width, count = np.dtype(self._tokenizer.dtype).itemsize, 0
        for part in grouped_parts(documents)[task]:
            for piece in documents.read(part):
                yield count, piece.place
                count += len(self._tokenizer.encode(piece)) // width
