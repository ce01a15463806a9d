"""A cluster made by kind, where a container engine runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.binaries import GoToolbox
from tests.cluster.images.engine import container_engine
from tests.cluster.model import Cluster, ClusterError, ImageStore, Profile, Request
from tests.cluster.paths import locked, user_folder
from tests.cluster.progress import step
from tests.cluster.toolbox import PathToolbox


class Kind:
    """Provider of a node in a container."""

    name = "kind"

    def applies(self, profile: Profile) -> bool:
        """For a node only: tests of the control plane play the kubelet and the controllers themselves."""
        return profile is Profile.NODE and shutil.which("kind") is not None and bool(container_engine())

    def prepare(self, request: Request) -> None:
        """Do nothing: kind pulls its node image when the cluster is created."""

    def up(self, request: Request) -> Cluster:
        """Create it, unless it is there and answers."""
        kubeconfig = self._folder(request) / "admin.kubeconfig"
        cluster = Cluster(request.name, request.profile, kubeconfig, self, PathToolbox(GoToolbox()))
        with locked(self._folder(request) / "lock"):
            if self._exists(request):
                self._kind("export", "kubeconfig", "--name", _name(request), "--kubeconfig", str(kubeconfig))
                if self._answers(cluster):
                    return cluster
                self._delete(request)
            with step("creating a cluster with kind", slow=True):
                target = ("--name", _name(request), "--kubeconfig", str(kubeconfig))
                self._kind("create", "cluster", *target, "--wait", "5m")
        return cluster

    def down(self, request: Request, *, purge: bool) -> None:
        """Delete it."""
        with locked(self._folder(request) / "lock", remove=True):
            self._delete(request)
            shutil.rmtree(self._folder(request))

    def status(self, request: Request) -> Mapping[str, str]:
        """Whether it exists."""
        return {"kind": f"cluster {_name(request)}"} if self._exists(request) else {}

    def load_image(self, cluster: Cluster, archive: Path) -> bool:
        """Leave it to kind, which skips nothing."""
        name = _name(Request(cluster.profile, cluster.name))
        self._kind("load", "image-archive", str(archive), "--name", name)
        return True

    def load_built(self, cluster: Cluster, store: ImageStore, reference: str) -> bool:
        """By way of an archive."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "image.tar"
            store.save(reference, archive)
            return self.load_image(cluster, archive)

    def _exists(self, request: Request) -> bool:
        return _name(request) in self._kind("get", "clusters").split()

    def _answers(self, cluster: Cluster) -> bool:
        ready: list[str | Path] = [
            cluster.kubectl,
            "wait",
            "--for=condition=Ready",
            "node",
            "--all",
            "--timeout=30s",
        ]
        return cluster.run(ready, check=False).returncode == 0

    def _delete(self, request: Request) -> None:
        self._kind("delete", "cluster", "--name", _name(request))

    def _folder(self, request: Request) -> Path:
        return user_folder("STATE") / "kind" / request.name

    def _kind(self, *arguments: str) -> str:
        environment = {**os.environ, "KIND_EXPERIMENTAL_PROVIDER": container_engine() or ""}
        done = subprocess.run(["kind", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"kind {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


def _name(request: Request) -> str:
    return f"trainyard-{request.name}"
