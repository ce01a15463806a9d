"""Programs that are added to a cluster, each built from the Go module that its go.mod and go.sum pin."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.binaries import find_go
from tests.cluster.model import ClusterError
from tests.cluster.paths import locked, user_folder
from tests.cluster.progress import step

MODULES = Path(__file__).parent / "add_on_modules"


@dataclass(frozen=True)
class AddOn:
    """A program that is built once and kept in the user's cache."""

    pins: Path
    """Folder of the go.mod whose `tool` line is the program; its name is that of the add-on."""
    module: str
    """Go module of the program."""
    command: str
    """Folder of the program in its module."""

    def program(self) -> Path:
        """Return the path of the program; build it first if needed.

        Raises:
            ClusterError: it cannot be built.
        """
        pinned = b"".join((self.pins / name).read_bytes() for name in ("go.mod", "go.sum"))
        folder = user_folder("CACHE") / "bin" / f"{self.pins.name}-{hashlib.sha256(pinned).hexdigest()[:16]}"
        program = folder / self.command.rpartition("/")[2]
        with locked(folder.with_suffix(".lock")):
            if not program.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with (
                    step(f"compiling {self.pins.name} (minutes the first time)", slow=True),
                    tempfile.TemporaryDirectory(dir=folder) as new,
                ):
                    output = Path(new) / program.name
                    self._go("build", "-trimpath", "-ldflags=-s -w", "-o", str(output), f"{self.module}/{self.command}")
                    output.rename(program)
        return program

    def sources(self) -> Path:
        """Return the folder of the module, which also has its manifests.

        Raises:
            ClusterError: it cannot be downloaded.
        """
        return Path(json.loads(self._go("mod", "download", "-json", self.module))["Dir"])

    def _go(self, *arguments: str) -> str:
        """Run the go command where the module is pinned; return what it prints."""
        command, environment = [find_go(self.pins), *arguments], {**os.environ, "CGO_ENABLED": "0"}
        done = subprocess.run(command, cwd=self.pins, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"go {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


KUEUE = AddOn(MODULES / "kueue", "sigs.k8s.io/kueue", "cmd/kueue")
COSCHEDULING = AddOn(MODULES / "coscheduling", "sigs.k8s.io/scheduler-plugins", "cmd/scheduler")
