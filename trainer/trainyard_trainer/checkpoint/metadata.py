"""Reads the index of a checkpoint (.metadata) without running what a pickle file can run.

torch.distributed.checkpoint writes its index with pickle, and a user who can write such a file can have the reader call
any function. Here only the classes of which an index consists are created, and what comes out is checked again: an
entry that is no tensor would have torch load a second pickle file, and a path could lead out of the checkpoint.
"""

import io
import pickle
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

from trainyard_trainer.runtime.errors import ConfigError

METADATA = ".metadata"
"""Name of the index in the folder of a checkpoint."""
_CLASSES: dict[tuple[str, str], Any] = {
    (item.__module__, item.__name__): item
    for item in (
        *(_MEM_FORMAT_ENCODING, _StorageInfo, _get_layout),
        *(ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties, TensorStorageMetadata),
    )
} | {("torch", "Size"): torch.Size}
"""All that an index may refer to by name, besides the types of numbers and paths. They hold values and do nothing."""
_PATHS = {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"}
"""Classes of `pathlib`: older versions stored where the checkpoint was written, which nothing reads."""


def read_metadata(file: BinaryIO, name: str) -> Metadata:
    """Return the index of a checkpoint.

    Args:
        file: the content of .metadata.
        name: its path, for errors.

    Raises:
        ConfigError: it holds what does not belong to an index, so it was not written by torch.
        ValueError: it is damaged.
    """
    try:
        metadata = _Unpickler(io.BytesIO(file.read())).load()
        _check(metadata)
    except _NotAllowed as error:
        raise ConfigError(
            f"spec.checkpoint: {name} is refused: it holds {error}, which is no part of a checkpoint and could run "
            "code; find out who can write there, and remove the checkpoint"
        ) from None
    # What damaged bytes raise depends on the bytes.
    except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    assert isinstance(metadata, Metadata), "it was checked"
    return metadata


class _NotAllowed(Exception):
    """An index refers to something that is no part of one; the message says what."""


class _Unpickler(pickle.Unpickler):
    """Creates the parts of an index, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class by its name."""
        if (found := _CLASSES.get((module, name))) is not None:
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module.partition(".")[0] == "pathlib" and name in _PATHS:
            return PurePosixPath
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        raise _NotAllowed(f"{module}.{name}")


def _memory_format(kind: object, name: object) -> _MEM_FORMAT_ENCODING:
    """Return a memory format, the only enumeration in an index, in place of the attribute of any object.

    Some versions of Python 3.11, among them that of Debian 12, write a member of an enumeration as the call of getattr
    with the class and the name of the member.
    """
    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise _NotAllowed("builtins.getattr")
    return _MEM_FORMAT_ENCODING[str(name)]


def _check(metadata: object) -> None:
    """Check that an index describes tensors, in files of its own folder."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
        raise TypeError("it is no index of torch.distributed.checkpoint")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise _NotAllowed(f"{name}, a {type(entry).__name__} in place of a tensor")
    if not isinstance(metadata.storage_data, dict):
        raise TypeError("it does not say where the tensors are")
    for info in metadata.storage_data.values():
        path = info.relative_path if isinstance(info, _StorageInfo) else None
        if not isinstance(path, str) or path in ("", ".", "..") or PurePosixPath(path).name != path:
            raise _NotAllowed(f"the path {path}")
        if info.transform_descriptors:
            raise _NotAllowed(f"a transformation of {path}")
