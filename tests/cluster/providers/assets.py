"""A control plane of the binaries in KUBEBUILDER_ASSETS, as set up by envtest's setup-envtest."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cluster.binaries import GoToolbox
from tests.cluster.model import ClusterError, Profile, Toolbox
from tests.cluster.providers.built import Built
from tests.cluster.toolbox import PathToolbox

VARIABLE = "KUBEBUILDER_ASSETS"


class Assets(Built):
    """As the one that is built, but with etcd and kube-apiserver from a folder."""

    name = "assets"

    def applies(self, profile: Profile) -> bool:
        """Return whether the variable is set; these programs make no node."""
        return profile is Profile.CONTROL_PLANE and bool(os.environ.get(VARIABLE))

    def toolbox(self) -> Toolbox:
        """Return a toolbox of the folder; only clients may be missing from it."""
        folder = Path(os.environ[VARIABLE]).expanduser().absolute()
        for tool in ("etcd", "kube-apiserver"):
            if not (folder / tool).is_file():
                raise ClusterError(f"{VARIABLE}={folder} has no {tool}: run setup-envtest, or unset it")
        return PathToolbox(GoToolbox(), folder)
