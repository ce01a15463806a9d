"""Documents of a source: divided into parts that are read independently, and read piece by piece.

A document may be larger than memory, so it comes in pieces. A piece ends where a space follows a character that is no
space: there every tokenizer of the GPT-2, Llama 3 and Qwen kind begins a new token, so that the tokens of the pieces
are those of the document.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from trainyard.resource.datasets import DataSource
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.data.files import FileStatus, describe, find_files, unreadable
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location, ObjectPath, ObjectStoreUnavailable, location

PIECE = 1 << 16
"""Bytes after which a piece ends at the next possible place."""
SEARCHED = 1 << 16
"""Bytes in which an end of a piece is looked for; text without a space in so many bytes is cut between characters."""
COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
"""Ends of the names of compressed files, which cannot be divided."""
EXPANSION = 4
"""Assumed size of compressed text, in relation to its file."""

_END = re.compile(rb"[^ \t\n\r\f\v](?=[ \t])")
_CONTINUES = re.compile(rb"[\x80-\xbf]{0,3}")


class Part(NamedTuple):
    """Part of the documents: bytes, row groups or rows of a file, from `start` to `end`."""

    path: str
    start: int
    end: int
    size: int
    """Bytes of its text, approximately."""


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    first: bool = True
    """Whether it begins the document."""
    last: bool = True
    """Whether it ends the document."""
    place: object = ""
    """Where it comes from, for a reader: a file, and a byte, line or row of it."""


class Line:
    """A line of a file, named in errors; its number is counted only then."""

    def __init__(self, documents: "JsonLines", path: str, position: int) -> None:
        """Name the line that begins at a position in bytes."""
        self._documents, self._path, self._position = documents, path, position

    def __str__(self) -> str:
        number, left = 1, self._position
        with self._documents.open(self._path) as file:
            while left > 0 and (content := file.read(min(left, PIECE))):
                number += content.count(b"\n")
                left -= len(content)
        return f"{self._path}, line {number}"


class Documents(ABC):
    """The documents of a source, in a fixed order."""

    def __init__(self, source: DataSource, field: str) -> None:
        """Describe a source; `field` is the name of its path in errors."""
        self.source, self.field = source, field

    @abstractmethod
    def parts(self, limit: int) -> Iterator[Part]:
        """Yield parts of at most about `limit` bytes in order; they depend on the files and the limit alone.

        Raises:
            ConfigError: the source is missing or unreadable.
        """

    @abstractmethod
    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the pieces of a part.

        Raises:
            ConfigError: the part is unreadable, or has another form than the source should have.
        """

    def files(self) -> tuple[Location, ...]:
        """Return the files of the source.

        Raises:
            ConfigError: there are none.
        """
        return find_files(self.source.path, self.field)

    def identity(self) -> list[FileStatus]:
        """Return what identifies the documents without reading them."""
        return describe(self.files(), self.field)

    def document(self, text: Any, where: object) -> Iterator[Piece]:
        """Yield the pieces of a document that is in memory; `where` names it in errors. An empty one has none."""
        if text is None or text == "":
            return
        if not isinstance(text, str):
            raise ConfigError(
                f"{self.field}: {where}: {self.source.field} is of type {type(text).__name__}; it must be text, name "
                "another field"
            )
        # A lone surrogate, which JSON can hold, is no character.
        content = text.encode(errors="replace")
        start = 0
        while start < len(content):
            end = _cut(content, start + PIECE)
            yield Piece(content[start:end].decode(), start == 0, end == len(content), where)
            start = end


class TextFiles(Documents):
    """UTF-8 files, each of which is a document."""

    def parts(self, limit: int) -> Iterator[Part]:
        """Yield files in order, large ones in ranges of bytes."""
        files = self.files()
        for path, status in zip(files, describe(files, self.field), strict=True):
            count = max(1, -(-status.size // limit))
            for index in range(count if status.size else 0):
                start, end = status.size * index // count, status.size * (index + 1) // count
                yield Part(str(path), start, end, end - start)

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the pieces of a range of bytes; it begins and ends at the next possible places."""
        try:
            with location(part.path).open("rb") as file:
                size = file.seek(0, 2)
                start, end = _cut_file(file, part.start, size), _cut_file(file, part.end, size)
                while start < end:
                    stop = end if start + PIECE >= end else min(end, _cut_file(file, start + PIECE, size))
                    file.seek(start)
                    place = f"{part.path}, byte {start}"
                    yield Piece(file.read(stop - start).decode(), start == 0, stop == size, place)
                    start = stop
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{self.field}: {part.path} is not UTF-8 text ({error.reason}); convert the file, or leave it out"
            ) from error
        except OSError as error:
            raise unreadable(part.path, self.field, error) from error


class JsonLines(Documents):
    """Files with a JSON object in each line, each of which is a document."""

    SUFFIXES = (".jsonl", ".ndjson", ".json", *(f".jsonl{end}" for end in COMPRESSED))

    def files(self) -> tuple[Location, ...]:
        """Return the files of the source."""
        return find_files(self.source.path, self.field, self.SUFFIXES)

    def parts(self, limit: int) -> Iterator[Part]:
        """Yield files in order, large ones in ranges of bytes."""
        files = self.files()
        for path, status in zip(files, describe(files, self.field), strict=True):
            if path.name.endswith(COMPRESSED):
                yield Part(str(path), 0, status.size, status.size * EXPANSION)
                continue
            count = max(1, -(-status.size // limit))
            for index in range(count):
                start, end = status.size * index // count, status.size * (index + 1) // count
                yield Part(str(path), start, end, end - start)

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the documents of the lines that begin in a range of bytes."""
        try:
            with self.open(part.path) as file:
                position = 0
                if part.start:
                    # The line that holds the byte before the range belongs to the part before.
                    file.seek(part.start - 1)
                    position = part.start - 1 + len(file.readline())
                whole = part.path.endswith(COMPRESSED)
                while (whole or position < part.end) and (line := file.readline()):
                    yield from self._documents(line, Line(self, part.path, position))
                    position += len(line)
        except ObjectStoreUnavailable:
            raise
        except OSError as error:
            raise ConfigError(
                f"{self.field}: {part.path} cannot be read in the worker ({error.strerror or error}); correct its "
                "permissions, or write the file again"
            ) from error

    def open(self, path: str) -> BinaryIO:
        """Open a file, compressed or not, as what it contains."""
        file = location(path).open("rb")
        if not path.endswith(COMPRESSED):
            return file
        import io

        import pyarrow

        codec = pyarrow.Codec.detect(path).name
        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), codec)))

    def _documents(self, line: bytes, where: Line) -> Iterator[Piece]:
        row = self._row(line, where)
        if row is not None:
            yield from self.document(row[self.source.field], where)

    def _row(self, line: bytes, where: Line) -> dict[str, Any] | None:
        """Return the object of a line, which has the field of the source; None for an empty line."""
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{self.field}: {where}: the line is not JSON ({error}); write one object a line"
            ) from error
        if not isinstance(row, dict) or self.source.field not in row:
            names = f"has the fields {', '.join(row)}" if isinstance(row, dict) else "is not an object"
            raise ConfigError(
                f"{self.field}: {where}: there is no field {self.source.field}, the line {names}; name the field in "
                "spec.trainer.data.field"
            )
        return row


class Chats(JsonLines):
    """Files with a JSON object in each line, each of which is a conversation: messages with a role and a content."""

    def _documents(self, line: bytes, where: Line) -> Iterator[Piece]:
        row = self._row(line, where)
        if row is None:
            return
        messages, tools = row[self.source.field], row.get("tools")
        problem = _problem(messages)
        if problem is None and not (tools is None or isinstance(tools, list)):
            problem = "its tools are not a list"
        if problem is not None:
            raise ConfigError(
                f'{self.field}: {where}: {problem}; write {{"{self.source.field}": [{{"role": "user", '
                '"content": TEXT}, {"role": "assistant", "content": TEXT}]}'
            )
        text = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False)
        yield Piece(text, place=_Place(self.field, where))


class _Place(NamedTuple):
    """Where a conversation is, with the field of the spec that leads there."""

    field: str
    line: Line

    def __str__(self) -> str:
        return f"{self.field}: {self.line}"


def _problem(messages: Any) -> str | None:
    """Return why something is no conversation to learn from; None if it is one."""
    if not isinstance(messages, list) or not messages:
        return "there are no messages"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {number} has no role"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"message {number}, of the {message['role']}, has no content"
    if all(message["role"] != "assistant" for message in messages):
        return "the assistant says nothing, and nothing else is learned"
    return None


class Parquet(Documents):
    """Parquet files, each row of which is a document."""

    def files(self) -> tuple[Location, ...]:
        """Return the files of the source."""
        return find_files(self.source.path, self.field, (".parquet",))

    def parts(self, limit: int) -> Iterator[Part]:
        """Yield row groups in order."""
        for path in self.files():
            file = self._open(path)
            column = file.schema_arrow.names.index(self.source.field)
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).column(column).total_uncompressed_size
                yield Part(str(path), group, group + 1, size)

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the documents of a row group."""
        file = self._open(location(part.path))
        groups = list(range(part.start, part.end))
        row = 0
        for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[self.source.field]):
            for text in batch.column(0).to_pylist():
                yield from self.document(text, f"{part.path}, row group {part.start}, row {row}")
                row += 1

    def _open(self, path: Location) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path.open_raw() if isinstance(path, ObjectPath) else path)
        except ObjectStoreUnavailable:
            raise
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigError(f"{self.field}: {path} cannot be read as Parquet ({error}); correct the path") from error
        if self.source.field not in file.schema_arrow.names:
            raise ConfigError(
                f"{self.field}: {path} has no column {self.source.field}, only {', '.join(file.schema_arrow.names)}; "
                "name one that holds the text"
            )
        return file


class HuggingFace(Documents):
    """A data set that `datasets.save_to_disk` has written, each row of which is a document."""

    ROWS = 256
    """Rows that are in memory at a time."""

    def parts(self, limit: int) -> Iterator[Part]:
        """Yield ranges of rows in order."""
        rows = self._open()
        size = rows.data.nbytes
        count = max(1, min(len(rows), -(-size // limit)))
        for index in range(count if len(rows) else 0):
            start, end = len(rows) * index // count, len(rows) * (index + 1) // count
            yield Part(self.source.path, start, end, size // count)

    def read(self, part: Part) -> Iterator[Piece]:
        """Yield the documents of a range of rows."""
        rows = self._open()
        for start in range(part.start, part.end, self.ROWS):
            for row, text in enumerate(rows[start : min(start + self.ROWS, part.end)][self.source.field], start):
                yield from self.document(text, f"{part.path}, row {row}")

    def _open(self) -> Any:
        self.files()
        import datasets

        datasets.disable_progress_bars()
        try:
            found = datasets.load_from_disk(local_path(self.source.path, self.field))
        except ObjectStoreUnavailable:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.field}: {self.source.path} is not a folder that datasets.save_to_disk has written ({error}); "
                "save the data set, or use source parquet for its files"
            ) from error
        if isinstance(found, datasets.DatasetDict):
            if self.source.split not in found:
                raise ConfigError(
                    f"{self.field}: {self.source.path} has the splits {', '.join(found)}; set split to one of them"
                )
            found = found[self.source.split]
        if self.source.field not in found.column_names:
            raise ConfigError(
                f"{self.field}: {self.source.path} has no column {self.source.field}, only "
                f"{', '.join(found.column_names)}; name one that holds the text"
            )
        return found


_READERS: dict[str, type[Documents]] = {
    "text": TextFiles,
    "jsonl": JsonLines,
    "chat": Chats,
    "parquet": Parquet,
    "huggingface": HuggingFace,
}


def open_documents(source: DataSource, field: str) -> Documents:
    """Return the documents of a source; `field` is the name of its path in errors."""
    return _READERS[source.source](source, field)


def _cut(content: bytes, at: int) -> int:
    """Return where a piece that should end at a byte ends: there or later, so that no token and no character is cut."""
    if at >= len(content):
        return len(content)
    if found := _END.search(content, at - 1, at + SEARCHED):
        return found.end()
    if at + SEARCHED >= len(content):
        return len(content)
    continues = _CONTINUES.match(content, at)
    assert continues is not None, "the pattern matches the empty string"
    return continues.end()


def _cut_file(file: BinaryIO, at: int, size: int) -> int:
    """Return where the part of a file that should end at a byte ends, as `_cut` does."""
    if at <= 0 or at >= size:
        return max(0, min(at, size))
    file.seek(at - 1)
    # The longest character has four bytes.
    return at - 1 + _cut(file.read(SEARCHED + 8), 1)
