"""A real Prometheus in the cluster's network, configured as the sample in manifests is."""

import json
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster import Cluster
from tests.e2e.world import eventually
from tests.support.need import require

SAMPLE = Path("manifests/samples/prometheus.yaml")
ADDRESS = "127.0.0.1:9490"
_GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    cluster: Cluster

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that an instant query gives."""
        url = f"http://{ADDRESS}/api/v1/query?query={urllib.parse.quote(expression)}"
        answer = json.loads(self.cluster.run([sys.executable, "-c", _GET, url]).stdout)
        assert answer["status"] == "success", answer
        return [(r["metric"], float(r["value"][1])) for r in answer["data"]["result"]]


@contextmanager
def run_prometheus(cluster: Cluster, folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus with the sample configuration, and the cluster's kubeconfig to find the pods."""
    program = shutil.which("prometheus")
    require(program, "prometheus (apt-get install prometheus)")
    config = yaml.safe_load(SAMPLE.read_text("utf-8"))
    config["global"]["scrape_interval"] = config["global"]["scrape_timeout"] = "1s"
    for job in config["scrape_configs"]:
        for discovery in job["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = str(cluster.kubeconfig)
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={ADDRESS}"]
    with (folder / "log").open("wb") as log:
        command = [*cluster.command_prefix, str(program), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = Prometheus(cluster)
            ready = [sys.executable, "-c", _GET, f"http://{ADDRESS}/-/ready"]
            eventually("Prometheus ready", lambda: cluster.run(ready, check=False).returncode == 0)
            yield found
        finally:
            process.terminate()
            process.wait(timeout=30)
