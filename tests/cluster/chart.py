"""The chart as plain manifests, for `kubectl apply -f`."""

import subprocess
from collections.abc import Sequence

from tests.cluster.binaries import GoToolbox
from tests.cluster.model import ClusterError
from tests.cluster.paths import REPOSITORY
from tests.cluster.toolbox import PathToolbox

KUBERNETES = "1.34.0"
"""Kubernetes version to render for, as no cluster is asked."""
IMAGES = tuple(f"{name}.image.repository=trainyard-{name}.invalid/set-this-image" for name in ("operator", "trainer"))
"""Placeholders, which no registry can have: the domain .invalid is reserved (RFC 2606)."""


def render_chart(namespace: str, *settings: str, images: Sequence[str] = IMAGES) -> str:
    """Return a Namespace, and all that `helm install trainyard charts/trainyard` would create in it.

    `settings` and `images`: values for helm's --set, KEY=VALUE; later ones override earlier ones.
    """
    helm = PathToolbox(GoToolbox()).path("helm")
    chart = str(REPOSITORY / "charts" / "trainyard")
    command = [str(helm), "template", "trainyard", chart, f"--namespace={namespace}", f"--kube-version={KUBERNETES}"]
    command += [f"--set={setting}" for setting in (*images, *settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"helm template failed: {done.stderr.strip()}")
    heading = (
        "# Generated from charts/trainyard by `make generate`. Replace both images (*.invalid/set-this-image)\n"
        "# by yours, see docs/install.md, and install with `kubectl apply --server-side -f`.\n"
    )
    return f"{heading}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n{done.stdout}"
