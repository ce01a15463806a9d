"""The chart as plain manifests, for `kubectl apply -f`."""

import subprocess

from tests.cluster.binaries import GoToolbox
from tests.cluster.model import ClusterError
from tests.cluster.paths import REPOSITORY
from tests.cluster.toolbox import PathToolbox
from tests.cluster.versions import DEFAULT

KUBERNETES = f"{DEFAULT}.0"
"""Rendering asks no cluster for its version."""


def render_chart(namespace: str, *settings: str) -> str:
    """A Namespace, and all that `helm install trainyard charts/trainyard` would create in it.

    `settings`: as of helm's --set, KEY=VALUE.
    """
    helm = PathToolbox(GoToolbox()).path("helm")
    chart = str(REPOSITORY / "charts" / "trainyard")
    command = [str(helm), "template", "trainyard", chart, f"--namespace={namespace}", f"--kube-version={KUBERNETES}"]
    command += [f"--set={setting}" for setting in settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"helm template failed: {done.stderr.strip()}")
    heading = "# Generated from charts/trainyard by `make generate`; install with `kubectl apply --server-side -f`.\n"
    return f"{heading}apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n{done.stdout}"
