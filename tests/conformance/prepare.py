"""Objects of the cluster that cases about scheduling need: the kinds of groups, and a priority class."""

from pathlib import Path

import yaml

from tests.cluster import Cluster
from tests.conformance.cases_scheduling import PRIORITY
from tests.integration.conftest import install_crd
from tests.support.gang_crds import GANG_CRDS


def install_scheduling_objects(cluster: Cluster, folder: Path) -> None:
    """Install them; no scheduler looks at the groups."""
    for name, crd in GANG_CRDS.items():
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(crd), "utf-8")
        install_crd(cluster, file)
    cluster.run([cluster.kubectl, "apply", "-f", "-"], input=yaml.safe_dump(PRIORITY))
