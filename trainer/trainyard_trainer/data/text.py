"""Text to train on: the files behind spec.trainer.data, read in a fixed order."""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainyard.resource.datasets import Data
from trainyard_trainer.runtime.errors import ConfigError

PIECE = 1 << 20
"""Characters read at a time, so that memory does not grow with the data."""

# Not hand-written code of the standard library: tests, generated tables, and packages of other projects.
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data", "_bundled"}
_SKIPPED_FILES = ("_sysconfigdata", "_sysconfig")


@dataclass(frozen=True)
class Text:
    """Text files in the order in which they are read."""

    root: Path
    files: tuple[Path, ...]
    field: str

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of at most PIECE characters; files follow each other without a separator.

        Raises:
            ConfigError: a file is not UTF-8, or cannot be read.
        """
        for path in self.files:
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    while piece := file.read(PIECE):
                        yield piece
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{self.field}: {path} is not UTF-8 text ({error.reason}); convert the file, or leave it out"
                ) from error
            except OSError as error:
                raise ConfigError(
                    f"{self.field}: {path} cannot be read in the worker ({error.strerror}); correct its permissions"
                ) from error

    def identity(self) -> list[tuple[str, int, int]]:
        """Return name, size and modification time of each file, which identify the text without reading it."""
        status = [(path, path.stat()) for path in self.files]
        return [(str(path), found.st_size, found.st_mtime_ns) for path, found in status]


def find_text(config: Data) -> Text:
    """Return the text files that spec.trainer.data names.

    Raises:
        ConfigError: there are none.
    """
    if config.builtin is not None:
        root = Path(sysconfig.get_path("stdlib"))
        return Text(root, tuple(_sources(root)), "spec.trainer.data.builtin")
    assert config.path is not None, "exactly one of path and builtin is given"
    field, root = "spec.trainer.data.path", Path(config.path)
    if not root.exists():
        raise ConfigError(
            f"{field}: {root} does not exist in the worker; mount it through spec.workers.template, or correct the path"
        )
    files = (root,) if root.is_file() else tuple(sorted(p for p in root.rglob("*") if _is_data(p, root)))
    if not files:
        raise ConfigError(f"{field}: {root} holds no files; put the text there, or correct the path")
    return Text(root, files, field)


def _is_data(path: Path, root: Path) -> bool:
    """Return whether a path is a file that is not hidden; a mounted ConfigMap keeps hidden copies of its files."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


def _sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES):
                yield Path(folder, name)
