"""A real Prometheus in the cluster's network, configured as the sample in manifests is."""

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster import Cluster
from tests.e2e.world import Body, eventually
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
    """Start Prometheus with the sample configuration; pods are discovered as `discover` says."""
    program = shutil.which("prometheus")
    require(program, "prometheus (apt-get install prometheus)")
    config = yaml.safe_load(SAMPLE.read_text("utf-8"))
    config["global"]["scrape_interval"] = config["global"]["scrape_timeout"] = "1s"
    targets = folder / "targets.json"
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["file_sd_configs"] = [{"files": [str(targets)]}]
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={ADDRESS}"]
    with discover(cluster, targets), (folder / "log").open("wb") as log:
        command = [*cluster.command_prefix, str(program), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = Prometheus(cluster)
            eventually("Prometheus ready", lambda: _is_ready(cluster, process, folder / "log"))
            yield found
        finally:
            process.terminate()
            process.wait(timeout=30)


def _is_ready(cluster: Cluster, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, f"Prometheus ended: {log.read_text()}"
    return cluster.run([sys.executable, "-c", _GET, f"http://{ADDRESS}/-/ready"], check=False).returncode == 0


@contextmanager
def discover(cluster: Cluster, targets: Path) -> Iterator[None]:
    """Keep a file of the cluster's pods, with the labels that `kubernetes_sd_configs` (role pod) gives them.

    Debian builds Prometheus without Kubernetes discovery. So the test does this one part of it, and the rest of the
    sample, all of its relabelling included, is what Prometheus runs.
    """
    stop = threading.Event()

    def keep() -> None:
        while not stop.is_set():
            done = cluster.run([cluster.kubectl, "get", "pods", "-A", "-o", "json"], check=False)
            if done.returncode == 0:
                groups = [group for pod in json.loads(done.stdout)["items"] for group in _targets_of(pod)]
                part = targets.with_suffix(".part")
                part.write_text(json.dumps(groups))
                part.rename(targets)
            stop.wait(0.5)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _targets_of(pod: Body) -> Iterator[Body]:
    """One target for each declared port of each container, as in Prometheus' discovery/kubernetes/pod.go."""
    address = pod["status"].get("podIP")
    labels = {
        "namespace": pod["metadata"]["namespace"],
        "pod_name": pod["metadata"]["name"],
        "pod_phase": pod["status"]["phase"],
    }
    for key, value in pod["metadata"].get("annotations", {}).items():
        labels[f"pod_annotation_{re.sub('[^a-zA-Z0-9_]', '_', key)}"] = value
    for container in pod["spec"]["containers"] if address else ():
        for port in container.get("ports", ()):
            yield {
                "targets": [f"{address}:{port['containerPort']}"],
                "labels": {f"__meta_kubernetes_{key}": value for key, value in labels.items()},
            }
