"""A cluster of binaries that are built from Go modules, run by this tool itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster import prerequisites
from tests.cluster.binaries import GoToolbox
from tests.cluster.images.buildah import Buildah
from tests.cluster.local import ControlPlane, LocalCluster
from tests.cluster.model import Cluster, ClusterError, ImageStore, Profile, Request, Toolbox
from tests.cluster.node import Node
from tests.cluster.paths import paths_of


class Built:
    """Provider of last resort: needs Go and, for a node, root and a few Debian packages."""

    name = "built"

    def applies(self, profile: Profile) -> bool:
        """Always; what is missing is reported when it is needed."""
        return True

    def toolbox(self) -> Toolbox:
        """Where its programs come from."""
        return GoToolbox()

    def prepare(self, request: Request) -> None:
        """Compile the programs."""
        self._check(request)
        self.toolbox().prepare(self._tools(request))

    def up(self, request: Request) -> Cluster:
        """Check the machine, then run the daemons."""
        self._check(request)
        local = self._local(request)
        local.up()
        return Cluster(request.name, request.profile, local.paths.kubeconfig(), self, local.toolbox, local.prefix)

    def down(self, request: Request, *, purge: bool) -> None:
        """Stop the daemons and remove what they made."""
        self._local(request).down()
        if purge:
            GoToolbox().purge()
            Buildah().purge()

    def status(self, request: Request) -> Mapping[str, str]:
        """Every daemon."""
        return self._local(request).status()

    def load_image(self, cluster: Cluster, archive: Path) -> bool:
        """Import it into containerd."""
        return self._node(cluster).containerd.load_archive(archive)

    def load_built(self, cluster: Cluster, store: ImageStore, reference: str) -> bool:
        """Import the layers that containerd does not have."""
        containerd = self._node(cluster).containerd
        if isinstance(store, Buildah):
            return containerd.load_built(store, reference)
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "image.tar"
            store.save(reference, archive)
            return containerd.load_archive(archive)

    def _check(self, request: Request) -> None:
        prerequisites.check(request.profile, self.toolbox(), self._tools(request), paths_of(request).state)

    def _tools(self, request: Request) -> Sequence[str]:
        return (ControlPlane if request.profile is Profile.CONTROL_PLANE else Node).tools

    def _node(self, cluster: Cluster) -> Node:
        if cluster.profile is not Profile.NODE:
            raise ClusterError("a control plane runs no images: use the cluster with a node")
        return Node(Request(cluster.profile, cluster.name), self.toolbox())

    def _local(self, request: Request) -> LocalCluster:
        if request.profile is Profile.CONTROL_PLANE:
            return ControlPlane(request, self.toolbox())
        return Node(request, self.toolbox())
