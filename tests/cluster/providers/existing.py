"""A cluster of the user's own, named by TRAINYARD_TEST_KUBECONFIG. Used as it is, never removed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.binaries import GoToolbox
from tests.cluster.model import Cluster, ClusterError, ImageStore, Profile, Request
from tests.cluster.toolbox import PathToolbox

VARIABLE = "TRAINYARD_TEST_KUBECONFIG"


class Existing:
    """Provider of the cluster that is already there."""

    name = "existing"

    def applies(self, profile: Profile) -> bool:
        """When the variable is set."""
        return bool(os.environ.get(VARIABLE))

    def prepare(self, request: Request) -> None:
        """Do nothing: the cluster is there."""

    def up(self, request: Request) -> Cluster:
        """Check that it answers."""
        kubeconfig = Path(os.environ[VARIABLE]).expanduser().absolute()
        if not kubeconfig.is_file():
            raise ClusterError(f"{VARIABLE}={kubeconfig}: no such file")
        cluster = Cluster(request.name, request.profile, kubeconfig, self, PathToolbox(GoToolbox()))
        cluster.run([cluster.kubectl, "--request-timeout=10s", "get", "--raw", "/readyz"])
        return cluster

    def down(self, request: Request, *, purge: bool) -> None:
        """Nothing: it is not ours."""

    def status(self, request: Request) -> Mapping[str, str]:
        """Whether it answers."""
        try:
            self.up(request)
        except ClusterError as error:
            return {"kube-apiserver": f"not healthy: {error}"}
        return {"kube-apiserver": "healthy"}

    def load_image(self, cluster: Cluster, archive: Path) -> bool:
        """Not possible from here."""
        raise ClusterError(f"{VARIABLE} is set: push the images to a registry that this cluster pulls from")

    def load_built(self, cluster: Cluster, store: ImageStore, reference: str) -> bool:
        """Not possible either."""
        return self.load_image(cluster, Path(reference))
