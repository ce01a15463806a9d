"""Programs that are already installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.model import Toolbox


@dataclass(frozen=True)
class PathToolbox:
    """Looks programs up, in one folder or on PATH, and leaves what is missing to another toolbox."""

    fallback: Toolbox
    folder: Path | None = None

    def path(self, tool: str) -> Path:
        """The program."""
        return self._find(tool) or self.fallback.path(tool)

    def prepare(self, tools: Sequence[str]) -> None:
        """Leave those that are not installed to the other toolbox."""
        self.fallback.prepare([tool for tool in tools if self._find(tool) is None])

    @property
    def version(self) -> str:
        """The folder: whoever changes its content changes its name as well."""
        return str(self.folder or "PATH")

    def _find(self, tool: str) -> Path | None:
        if self.folder and (self.folder / tool).is_file():
            return self.folder / tool
        # Only clients may come from PATH: servers of unknown version would not match each other.
        found = shutil.which(tool) if tool in {"kubectl", "helm"} else None
        return Path(found) if found else None
