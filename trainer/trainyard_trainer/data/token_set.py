"""Token ids in files, mapped into memory: as prepared here, by Megatron, or as a flat array."""

import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainyard.resource.datasets import DataSource
from trainyard_trainer.data.downloads import local_path
from trainyard_trainer.data.files import find_files, unreadable
from trainyard_trainer.data.sampling import IntArray
from trainyard_trainer.runtime.errors import ConfigError

INDEX = "index.json"
"""Name of the file that makes a folder a set of prepared tokens."""
MAX_MAPS = 256
"""Files that are mapped at a time; the kernel limits mappings to 65,530 of a process."""
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_HEADER_MAGIC, _HEADER_BYTES = 20240520, 1024
"""Of .bin files that begin with 256 integers of 32 bits: this number, a version, and the number of tokens (llm.c)."""
_BLOCKS, _BLOCK_BYTES = 64, 4096
"""Samples of a file that identify it."""
READ_COMPLETELY = 64 << 20
"""Bytes of files up to which all of their content identifies them."""


@dataclass(frozen=True)
class TokenFile:
    """Token ids in a part of a file."""

    path: Path
    dtype: str
    offset: int
    """Bytes before the first token."""
    count: int
    """Number of tokens."""


class TokenSet:
    """Token ids of several files, one after the other, which are read like one array."""

    def __init__(self, files: Sequence[TokenFile], fingerprint: int) -> None:
        """Describe a set of tokens; `fingerprint`: 63 bits that identify the tokens."""
        self.files = tuple(file for file in files if file.count)
        self.fingerprint = fingerprint
        self._ends = np.cumsum([file.count for file in self.files], dtype=np.int64)
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, into: IntArray) -> None:
        """Copy the tokens from number `start` on into an array [N], which they fill."""
        done = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while done < len(into):
            begin = start + done - (int(self._ends[index]) - self.files[index].count)
            size = min(len(into) - done, self.files[index].count - begin)
            # Slices are copied without Python's lock, so that the thread that trains continues.
            into[done : done + size] = self._map(index)[begin : begin + size]
            done, index = done + size, index + 1

    def locate(self, start: int, count: int) -> list[tuple[TokenFile, int, int]]:
        """Return the files that hold `count` tokens from number `start` on, each with the first and the last of them.

        Those are numbered from the beginning of the file.
        """
        found = []
        for file, end in zip(self.files, self._ends.tolist(), strict=True):
            begin = end - file.count
            if begin < start + count and start < end:
                found.append((file, max(start, begin) - begin, min(start + count, end) - begin - 1))
        return found

    def _map(self, index: int) -> NDArray[Any]:
        """Return a file, mapped into memory; the one that was not used for longest is unmapped."""
        found = self._maps.pop(index, None)
        if found is None:
            file = self.files[index]
            found = np.memmap(file.path, dtype=file.dtype, mode="r", offset=file.offset, shape=(file.count,))
            if len(self._maps) >= MAX_MAPS:
                self._maps.popitem(last=False)
        self._maps[index] = found
        return found


class TokenSpan(NamedTuple):
    """Tokens of a sample."""

    source: int
    """Index of the source."""
    tokens: TokenSet
    held_out: bool
    """Whether the set is the held-out data of the source (evalPath)."""
    start: int
    """Number of the first token in the set."""
    size: int
    """Number of tokens."""


def open_prepared(folder: Path) -> TokenSet:
    """Return the tokens of a folder that has an index.

    Raises:
        OSError: a file is missing.
    """
    index = json.loads((folder / INDEX).read_text())
    files = [TokenFile(folder / name, index["dtype"], 0, count) for name, count in index["files"]]
    return TokenSet(files, int(index["digest"][:16], 16) >> 1)


def open_tokens(source: DataSource, field: str) -> TokenSet:
    """Return the tokens of a source that holds token ids.

    Raises:
        ConfigError: there are none, or a file is not what its header says.
    """
    # Tokens are mapped into memory, so those of an object store are downloaded.
    path = local_path(source.path, field, (".bin", ".idx", INDEX), beside=(".idx",))
    folder = Path(path)
    if (folder / INDEX).is_file():
        try:
            return open_prepared(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{field}: {folder} is incomplete ({error}); run trainyard prepare again") from error
    files = []
    for found in find_files(path, field, (".bin",)):
        assert isinstance(found, Path), "objects are downloaded"
        try:
            files.append(_describe(found, source.token_type, field))
        except OSError as error:
            raise unreadable(found, field, error) from error
    return TokenSet(files, _fingerprint(files))


def _describe(path: Path, dtype: str, field: str) -> TokenFile:
    """Return what a .bin file holds, according to its index, its header, or else the given type."""
    size = path.stat().st_size
    index = path.with_suffix(".idx")
    if index.is_file():
        return _megatron(path, index, size, field)
    offset = 0
    with path.open("rb") as file:
        header = file.read(12)
    if len(header) == 12 and struct.unpack("<3i", header)[0] == _HEADER_MAGIC:
        offset = _HEADER_BYTES
    width = np.dtype(dtype).itemsize
    if (size - offset) % width:
        raise ConfigError(f"{field}: {path} is not an array of {dtype}; set tokenType to the type of its tokens")
    return TokenFile(path, dtype, offset, (size - offset) // width)


def _megatron(path: Path, index: Path, size: int, field: str) -> TokenFile:
    """Return the tokens of a file in the format of Megatron-LM's IndexedDataset."""
    header = struct.Struct("<9sQBQQ")
    with index.open("rb") as file:
        begin = file.read(header.size)
        if len(begin) < header.size or not begin.startswith(_MEGATRON_MAGIC):
            raise ConfigError(f"{field}: {index} is not an index of Megatron; remove it, or write the tokens again")
        _, version, code, sequences, _ = header.unpack(begin)
        lengths = np.fromfile(file, np.int32, sequences)
    dtype = _MEGATRON_TYPES.get(code)
    if version != 1 or dtype is None:
        raise ConfigError(f"{field}: {index} has version {version} and type {code}; write it with integers, version 1")
    count = int(lengths.sum(dtype=np.int64))
    if len(lengths) != sequences or count * np.dtype(dtype).itemsize > size:
        raise ConfigError(f"{field}: {path} is shorter than {index} says; write the tokens again")
    return TokenFile(path, dtype, 0, count)


def _fingerprint(files: Sequence[TokenFile]) -> int:
    """Return 63 bits of a digest of files: of all they hold, or if that is much, of their sizes and of samples."""
    digest = hashlib.sha256()
    complete = sum(file.count * np.dtype(file.dtype).itemsize for file in files) <= READ_COMPLETELY
    for file in files:
        digest.update(f"{file.dtype} {file.count} ".encode())
        end = file.offset + file.count * np.dtype(file.dtype).itemsize
        with file.path.open("rb") as content:
            if complete:
                content.seek(file.offset)
                digest.update(content.read(end - file.offset))
                continue
            for start in np.linspace(file.offset, max(file.offset, end - _BLOCK_BYTES), _BLOCKS, dtype=np.int64):
                content.seek(int(start))
                digest.update(content.read(_BLOCK_BYTES))
    return int.from_bytes(digest.digest()[:8], "little") >> 1
