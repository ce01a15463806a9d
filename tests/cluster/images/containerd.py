"""Brings images into containerd, and of those only the layers that it does not have."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.cluster.images.buildah import Buildah
from tests.cluster.model import ClusterError

CHUNK = 1 << 20
LARGE = 1 << 30
"""Bytes of new layers from which on the image that they replace is removed first."""


@dataclass(frozen=True)
class Containerd:
    """A containerd, seen through ctr."""

    socket: Path
    root: Path
    """Where it stores everything."""

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ctr in the namespace that the kubelet uses."""
        return subprocess.run(self._command(*arguments), capture_output=True, text=True, timeout=60, check=False)

    def images(self) -> dict[str, str]:
        """Return the references of all images, with the digests of their manifests."""
        lines = self.ctr("images", "ls").stdout.splitlines()[1:]
        return {words[0]: words[2] for words in map(str.split, lines)}

    def load_archive(self, archive: Path) -> bool:
        """Import an archive; return False if containerd has all of its images already."""
        wanted = _images_of(archive)
        have = self.images()
        if wanted and all(have.get(reference) == digest for reference, digest in wanted.items()):
            return False
        with archive.open("rb") as source:
            self._import(lambda pipe: shutil.copyfileobj(source, pipe, CHUNK))
        return True

    def load_built(self, store: Buildah, reference: str) -> bool:
        """Import an image from a store; return False if containerd has it already.

        The layers that containerd has are left out of the archive that it imports, so the large ones of an image
        move once; and the archive is never on disk.
        """
        with store.locked():
            manifest = store.manifest(reference)
            if self.images().get(reference) == _digest(manifest):
                return False
            layers = json.loads(manifest)["layers"]
            if sum(layer["size"] for layer in layers if not self._has(layer["digest"])) > LARGE:
                self._remove_images([reference])
            self._import(lambda pipe: self._stream(store, reference, manifest, pipe))
        self._remove_images([])
        return True

    def _has(self, digest: str) -> bool:
        return (self.root / "io.containerd.content.v1.content" / _blob(digest)).exists()

    def _remove_images(self, references: list[str]) -> None:
        """Remove images, and those that lost their name to a newer one: the CRI gives each a second name."""
        images = self.images()
        wanted = {
            digest for name, digest in images.items() if not name.startswith("sha256:") and name not in references
        }
        stale = [name for name, digest in images.items() if digest not in wanted]
        if stale:
            self.ctr("images", "rm", "--sync", *stale)

    def _stream(self, store: Buildah, reference: str, manifest: bytes, pipe: IO[bytes]) -> None:
        document = json.loads(manifest)
        top = {
            "mediaType": document["mediaType"],
            "digest": _digest(manifest),
            "size": len(manifest),
            "annotations": {"io.containerd.image.name": reference},
        }
        index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
        configuration = document["config"]["digest"]
        _add(pipe, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(pipe, "index.json", index)
        _add(pipe, _blob(_digest(manifest)), manifest)
        _add(pipe, _blob(configuration), store.configuration(reference, configuration))
        for layer in document["layers"]:
            if not self._has(layer["digest"]):
                with store.layer(layer["digest"]) as content:
                    _add_stream(pipe, _blob(layer["digest"]), layer["size"], content)
        pipe.write(bytes(2 * tarfile.BLOCKSIZE))

    def _command(self, *arguments: str) -> list[str]:
        return ["ctr", f"--address={self.socket}", "--namespace=k8s.io", *arguments]

    def _import(self, write: Callable[[IO[bytes]], None]) -> None:
        with tempfile.TemporaryFile("w+") as errors:
            command = self._command("images", "import", "-")
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors) as importer:
                assert importer.stdin is not None
                try:
                    write(importer.stdin)
                    importer.stdin.close()
                except BrokenPipeError:
                    pass  # it has failed, and says why
            errors.seek(0)
            if importer.returncode != 0:
                raise ClusterError(f"containerd does not import the image: {errors.read().strip()}")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(digest: str) -> str:
    """Where an OCI layout, and containerd, keep the content with this digest."""
    return f"blobs/{digest.replace(':', '/')}"


def _add(pipe: IO[bytes], name: str, data: bytes) -> None:
    _add_stream(pipe, name, len(data), io.BytesIO(data))


def _add_stream(pipe: IO[bytes], name: str, size: int, content: IO[bytes]) -> None:
    """Write a member of a tar archive; tarfile itself copies a stream at a third of this speed."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    pipe.write(entry.tobuf())
    shutil.copyfileobj(content, pipe, CHUNK)
    pipe.write(bytes(-size % tarfile.BLOCKSIZE))


def _images_of(archive: Path) -> dict[str, str]:
    """Return references and manifest digests of an OCI archive; an empty mapping for another kind of archive."""
    try:
        with tarfile.open(archive, "r:") as tar:
            index = tar.extractfile("index.json")
            document: dict[str, Any] = json.load(index) if index else {}
    except FileNotFoundError:
        raise ClusterError(f"{archive}: no such file") from None
    except (KeyError, tarfile.ReadError):
        return {}
    found = {}
    for manifest in document.get("manifests", ()):
        annotations = manifest.get("annotations", {})
        name = annotations.get("io.containerd.image.name") or annotations.get("org.opencontainers.image.ref.name")
        if name is None:
            return {}
        found[name] = manifest["digest"]
    return found
