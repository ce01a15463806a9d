"""Programs that are already installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.cluster.model import ClusterError, Toolbox
from tests.cluster.versions import Kubernetes, of_program


@dataclass(frozen=True)
class PathToolbox:
    """Looks programs up, in one folder or on PATH, and leaves what is missing to another toolbox."""

    fallback: Toolbox
    folder: Path | None = None

    def path(self, tool: str) -> Path:
        """The program."""
        return self._find(tool) or self.fallback.path(tool)

    def missing(self, tools: Sequence[str]) -> list[str]:
        """Return those that are neither installed nor in the other toolbox yet."""
        return self.fallback.missing([tool for tool in tools if self._find(tool) is None])

    def prepare(self, tools: Sequence[str]) -> None:
        """Leave those that are not installed to the other toolbox."""
        self.fallback.prepare([tool for tool in tools if self._find(tool) is None])

    @cached_property
    def kubernetes(self) -> Kubernetes:
        """The version that kube-apiserver prints if it comes from the folder, else that of the other toolbox."""
        program = self.folder / "kube-apiserver" if self.folder else None
        if program is None or not program.is_file():
            return self.fallback.kubernetes
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"{program} --version exited {done.returncode}: {done.stderr.strip()}")
        return of_program(done.stdout)

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
