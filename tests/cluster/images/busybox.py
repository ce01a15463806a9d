"""Images of nothing but busybox, written as OCI archives: they need no engine and no base."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.process import require

PAUSE = "localhost/trainyard-pause:1"
# Pid 1 gets no default action for SIGTERM: without a trap each pod would end by a time-out.
PAUSE_COMMAND = (
    "/bin/busybox",
    "sh",
    "-c",
    'trap "exit 0" TERM INT; while :; do /bin/busybox sleep 3600 & wait $!; done',
)
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_pause_archive(archive: Path) -> None:
    """Write the image of the container that holds a pod's namespaces, in place of the usual one from a registry."""
    write_busybox_archive(archive, PAUSE, PAUSE_COMMAND)


def write_busybox_archive(archive: Path, reference: str, entrypoint: Sequence[str]) -> None:
    """Write an image of nothing but /bin/busybox and /bin/sh, in the OCI image layout."""
    layer = _layer(Path(require("busybox", "apt-get install busybox-static")))
    config = {
        "architecture": MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "trainyard: busybox"}],  # without it buildah builds nothing on top
    }
    blobs = {}

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = _digest(data)
        blobs[f"blobs/{digest.replace(':', '/')}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [blob("layer.v1.tar+gzip", gzip.compress(layer, mtime=0))],
    }
    top = blob("manifest.v1+json", json.dumps(manifest).encode())
    top["annotations"] = {"io.containerd.image.name": reference}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(archive, "w") as tar:
        for name, data in blobs.items():
            _add(tar, name, data)


def _layer(busybox: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "bin/busybox", busybox.read_bytes(), mode=0o755)
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
