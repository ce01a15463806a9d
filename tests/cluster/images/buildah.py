"""Builds images with buildah, which needs no container engine, in a store of this tool's own."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

from tests.cluster.images import recipe
from tests.cluster.model import ClusterError
from tests.cluster.paths import locked, user_folder
from tests.cluster.process import require, search_path
from tests.cluster.progress import step

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv", "python3-dev", "libgomp1", "g++")
"""The base image, in place of python:3.11-slim-bookworm, which only a registry has."""
HOST_CONFIGURATION = ("/etc/pip.conf", "/etc/uv/uv.toml")


@dataclass
class Buildah:
    """A store of images."""

    folder: Path = field(default_factory=lambda: user_folder("CACHE") / "images")

    def build(self, dockerfile: Path, context: Path, target: str, reference: str) -> None:
        """Build one target, stage by stage; a stage whose key has not changed is not built again."""
        if os.geteuid() != 0:
            raise ClusterError("building images without a container engine needs root: use sudo")
        with self.locked():
            text = dockerfile.read_text()
            plan = recipe.Recipe(recipe.stages(text), context, self._base())
            arguments = recipe.environment_arguments(recipe.declared_arguments(text))
            for name in plan.order(target):
                if not self._exists(plan.tag(name)):
                    self._remove_older(name, reference if name == target else None)
                    self._build_stage(plan, name, arguments)
            self._run("tag", plan.tag(target), reference)

    def save(self, reference: str, archive: Path) -> None:
        """Write an OCI archive."""
        self._run("push", "--quiet", "--disable-compression", reference, f"oci-archive:{archive}:{reference}")

    def locked(self) -> AbstractContextManager[None]:
        """Return the lock that builds take, since a build removes older images."""
        return locked(self.folder / "lock")

    def manifest(self, reference: str) -> bytes:
        """Return the manifest of an image, with the digests of its uncompressed layers."""
        return self._data(reference, "manifest")

    def configuration(self, reference: str, digest: str) -> bytes:
        """Return the configuration that the manifest of an image refers to."""
        return self._data(reference, digest)

    @contextmanager
    def layer(self, digest: str) -> Iterator[IO[bytes]]:
        """Yield an uncompressed layer as a stream, so that no copy of it is written to disk."""
        layers = json.loads(self._storage("layers", "--json"))
        name = next(layer["id"] for layer in layers if layer["diff-digest"] == digest)
        command = [*self._containers_storage("diff"), "--uncompressed", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            yield reader.stdout
        if reader.returncode != 0:
            raise ClusterError(f"containers-storage exited {reader.returncode}: {shlex.join(command)}")

    def purge(self) -> None:
        """Remove all images."""
        for folder in (self.folder, self._run_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _build_stage(self, plan: recipe.Recipe, name: str, arguments: dict[str, str]) -> None:
        file = self.folder / "Dockerfile"
        file.write_text(plan.text(name))
        declared = recipe.declared_arguments(file.read_text())
        options = [f"--build-arg={key}={value}" for key, value in arguments.items() if key in declared]
        options += [f"--volume={path}:{path}:ro" for path in _host_configuration()]
        # One layer for each stage: `--layers` would bring buildah's own cache back.
        options += ["--isolation=chroot", "--network=host", "--layers=false", f"--ignorefile={_ignore(plan.context)}"]
        with step(f"building the stage {name}", slow=True):
            self._run("bud", *options, f"--file={file}", f"--tag={plan.tag(name)}", str(plan.context))

    def _remove_older(self, name: str, reference: str | None) -> None:
        """Remove older images of a stage before it is built again: each may hold 5 GB."""
        older = [image for image in self._images() if image.startswith(f"{recipe.stage_repository(name)}:")]
        for image in [*older, *([reference] if reference in self._images() else [])]:
            self._run("rmi", "--force", str(image))

    def _base(self) -> str:
        key = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()
        base = f"localhost/trainyard-base:{key[:16]}"
        if not self._exists(base):
            require("mmdebstrap", "apt-get install mmdebstrap")
            with step("building the base image from Debian packages", slow=True):
                self._bootstrap(base)
        return base

    def _bootstrap(self, base: str) -> None:
        archive = self.folder / "base.tar"
        _checked(["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(archive)])
        container = self._run("from", "scratch").strip()
        self._run("add", "--quiet", container, str(archive))
        archive.unlink()
        self._run("config", "--env=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "--cmd=python3", container)
        self._run("commit", "--quiet", "--rm", container, base)

    def _exists(self, reference: str) -> bool:
        return reference in self._images()

    def _images(self) -> list[str]:
        listed = json.loads(self._run("images", "--all", "--json") or "[]")
        return [name for image in listed or [] for name in image.get("names") or []]

    def _run(self, *arguments: str) -> str:
        return _checked([*self._buildah, *arguments])

    @cached_property
    def _buildah(self) -> list[str]:
        program = require("buildah", "apt-get install buildah")
        # Where overlayfs cannot lie on top of this disk, buildah says so; vfs would copy 5 GB for each layer.
        return [program, f"--root={self.folder / 'store'}", f"--runroot={self._run_folder}", "--storage-driver=overlay"]

    @property
    def _run_folder(self) -> Path:
        """What must not outlive a boot; each store has its own."""
        return Path("/run/trainyard-cluster") / f"images-{hashlib.sha256(bytes(self.folder)).hexdigest()[:8]}"

    def _data(self, reference: str, item: str) -> bytes:
        return self._storage("get-image-data", reference, item).encode()

    def _storage(self, command: str, *arguments: str) -> str:
        return _checked([*self._containers_storage(command), *arguments])

    def _containers_storage(self, command: str) -> list[str]:
        program = require("containers-storage", "apt-get install containers-storage")
        store = [f"--graph={self.folder / 'store'}", f"--run={self._run_folder}", "--storage-driver=overlay"]
        return [program, command, *store]


def _host_configuration() -> list[Path]:
    """Return the files of this machine that a build needs to reach the package index: certificates, settings."""
    bundle = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    candidates = [bundle.parent, *map(Path, HOST_CONFIGURATION)]
    return [path for path in candidates if path.exists()]


def _ignore(context: Path) -> Path:
    file = context / ".dockerignore"
    return file if file.exists() else Path(os.devnull)


def _checked(command: list[str]) -> str:
    environment = {**os.environ, "PATH": search_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        name = next(word for word in command[1:] if not word.startswith("-"))
        raise ClusterError(f"{Path(command[0]).name} {name} failed:\n{end}")
    return done.stdout
