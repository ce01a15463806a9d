"""Objects of the cluster that cases about scheduling need: the kinds of groups and queues, and a priority class."""

from pathlib import Path

import yaml

from tests.cluster import Cluster
from tests.conformance.cases_scheduling import PRIORITY
from tests.integration.conftest import install_crd
from tests.support.scheduler_crds import GANG_CRDS, LOCAL_QUEUES


def install_scheduling_objects(cluster: Cluster, folder: Path) -> None:
    """Install them; no scheduler looks at the groups, and no Kueue at the queues."""
    for name, crd in {**GANG_CRDS, "queues": LOCAL_QUEUES}.items():
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(crd), "utf-8")
        install_crd(cluster, file)
    cluster.run([cluster.kubectl, "apply", "-f", "-"], input=yaml.safe_dump(PRIORITY))
