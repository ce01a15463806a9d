"""Builds images with docker or podman."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cluster.images import recipe
from tests.cluster.model import ClusterError
from tests.cluster.progress import step


@cache
def container_engine() -> str | None:
    """Return the command of a container engine whose server answers; None if only a client is installed, or nothing."""
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            try:
                done = subprocess.run([engine, "info"], capture_output=True, timeout=20, check=False)
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0:
                return engine
    return None


@dataclass(frozen=True)
class Engine:
    """The images of a container engine."""

    command: str

    def build(self, dockerfile: Path, context: Path, target: str, reference: str) -> None:
        """Build one target; what has not changed comes from the engine's cache."""
        declared = recipe.declared_arguments(dockerfile.read_text())
        arguments = [f"--build-arg={name}={value}" for name, value in recipe.environment_arguments(declared).items()]
        # Podman's cache does not see what bind mounts hold (containers/buildah issue 5400).
        fresh = ["--no-cache"] if self.command == "podman" else []
        with step(f"building {reference} with {self.command}", slow=True):
            self._run(
                "build",
                *fresh,
                *arguments,
                f"--target={target}",
                f"--tag={reference}",
                f"--file={dockerfile}",
                str(context),
            )

    def save(self, reference: str, archive: Path) -> None:
        """Write a docker archive."""
        self._run("save", "--output", str(archive), reference)

    def purge(self) -> None:
        """Do nothing: the images belong to the user."""

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([self.command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            end = "\n".join(done.stderr.strip().splitlines()[-20:])
            raise ClusterError(f"{self.command} {arguments[0]} failed:\n{end}")
        return done.stdout
