"""The versions of Kubernetes that test clusters run, with the beta APIs and feature gates that each of them enables.

Each version has a folder in `modules/` whose go.mod and go.sum pin Kubernetes, etcd, CoreDNS and helm. To add one:

1. Copy the newest folder, and in its go.mod set the version of every line in `replace` (Kubernetes 1.37.2 has the
   staging modules 0.37.2). The modules to replace are those that the go.mod of k8s.io/kubernetes requires as `v0.0.0`.
2. In that folder run `go get -tool PACKAGE@VERSION ...` with all packages in the `tool` block.
3. Add a row to VERSIONS, run the tests, then set DEFAULT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.model import ClusterError

MODULES = Path(__file__).parent / "modules"
VARIABLE = "TRAINYARD_TEST_KUBERNETES"
"""Environment variable that selects another version than DEFAULT, such as 1.34."""


@dataclass(frozen=True)
class Kubernetes:
    """A minor version of Kubernetes, and how its daemons are configured."""

    minor: str
    """Such as 1.37."""
    runtime_config: tuple[str, ...] = ()
    """API versions that kube-apiserver serves besides its defaults: every beta API is off by default."""
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    """Gates of all daemons; kube-apiserver, kube-controller-manager and kube-scheduler have to agree."""

    @property
    def module(self) -> Path:
        """The folder of the Go module that pins the programs of this version."""
        return MODULES / self.minor

    def apiserver_arguments(self) -> list[str]:
        """Return the arguments of kube-apiserver that enable the APIs and gates of this version."""
        served = [f"--runtime-config={','.join(f'{api}=true' for api in self.runtime_config)}"]
        return [*(served if self.runtime_config else ()), *self.gate_arguments()]

    def gate_arguments(self) -> list[str]:
        """Return the argument that sets the feature gates of a daemon; an empty list if there are none."""
        gates = ",".join(f"{name}={str(on).lower()}" for name, on in self.feature_gates.items())
        return [f"--feature-gates={gates}"] if gates else []


VERSIONS = {
    version.minor: version
    for version in (
        # Gang scheduling (KEP 4671): Workload and PodGroup, pod.spec.schedulingGroup, and the GangScheduling plugin of
        # kube-scheduler are one beta feature. The gate of topology-aware placement (TopologyAwareWorkloadScheduling) is
        # still alpha, and off here.
        Kubernetes("1.37", ("scheduling.k8s.io/v1beta1",), {"GenericWorkload": True}),
        # The oldest version that the tests run on; gang scheduling needs an add-on there.
        Kubernetes("1.34"),
    )
}
DEFAULT = "1.37"


def selected() -> Kubernetes:
    """Return the version that the environment asks for; raise ClusterError if there is no such version."""
    minor = os.environ.get(VARIABLE) or DEFAULT
    if minor not in VERSIONS:
        raise ClusterError(f"{VARIABLE}={minor}: no such version; use one of {', '.join(VERSIONS)}")
    return VERSIONS[minor]


def of_program(printed: str) -> Kubernetes:
    """Return the version that `kube-apiserver --version` printed; one that VERSIONS does not list has no beta APIs."""
    match = re.search(r"v(\d+\.\d+)\.", printed)
    minor = match[1] if match else "unknown"
    return VERSIONS.get(minor, Kubernetes(minor))
