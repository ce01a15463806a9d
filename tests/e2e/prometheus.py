"""A real Prometheus and a real Alertmanager in the cluster's network, configured as the samples in manifests are."""

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster import Cluster
from tests.e2e.fetch import Fetcher, FetchError, fetcher_in
from tests.e2e.namespace import Body, eventually
from tests.support.need import require
from trainyard_monitoring.picture import Series
from trainyard_monitoring.rule_file import rule_file
from trainyard_monitoring.timing import TIMING

SAMPLE = Path("manifests/samples/prometheus.yaml")
PORT = 9490
PACE = TIMING.scaled(1 / 30)
"""The rules' times in all tests on the node: a quarter of an hour is half a minute, and a series may be missing for
four scrapes."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    cluster: Cluster
    fetcher: Fetcher
    port: int = PORT

    @property
    def address(self) -> str:
        """Address of Prometheus."""
        return f"127.0.0.1:{self.port}"

    @property
    def alertmanager(self) -> str:
        """Address of its Alertmanager."""
        return f"127.0.0.1:{self.port + 1}"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of an instant query."""
        return [(r["metric"], float(r["value"][1])) for r in self._ask("query", query=expression)]

    def query_range(self, expression: str, start: float, end: float, step: float = 1.0) -> list[Series]:
        """Return each series of an expression between two times."""
        found = self._ask("query_range", query=expression, start=str(start), end=str(end), step=str(step))
        return [
            Series(r["metric"], [float(at) for at, _ in r["values"]], [float(value) for _, value in r["values"]])
            for r in found
        ]

    def _ask(self, what: str, **query: str) -> list[Body]:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        answer = self.fetcher.get_json(url)
        assert answer["status"] == "success", answer
        found: list[Body] = answer["data"]["result"]
        return found

    def alerts(self, job: str) -> set[str]:
        """Return the names of the active alerts about a job at Alertmanager."""
        return {a["labels"]["alertname"] for a in self.active() if a["labels"].get("job_name") == job}

    def active(self) -> list[Body]:
        """Return all active alerts, as Alertmanager's API returns them."""
        found: list[Body] = self.fetcher.get_json(f"http://{self.alertmanager}/api/v2/alerts")
        return found


@contextmanager
def run_prometheus(cluster: Cluster, folder: Path, port: int = PORT) -> Iterator[Prometheus]:
    """Start Prometheus with the sample configuration; pods are discovered as `discover` says.

    It takes this port of the cluster's network, its Alertmanager the next one, and the proxy of the API server that
    after it.
    """
    with fetcher_in(cluster) as fetcher, _run(Prometheus(cluster, fetcher, port), folder):
        yield Prometheus(cluster, fetcher, port)


@contextmanager
def _run(found: Prometheus, folder: Path) -> Iterator[None]:
    """Write the configuration of Prometheus, and run it with all that it needs."""
    program = shutil.which("prometheus")
    require(program, "prometheus (apt-get install prometheus)")
    config = yaml.safe_load(SAMPLE.read_text("utf-8"))
    config["global"] |= dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
    rules = folder / "rules.yaml"
    rules.write_text(rule_file(PACE), "utf-8")
    config["rule_files"] = [str(rules)]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [found.alertmanager]
    targets = folder / "targets.json"
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["file_sd_configs"] = [{"files": [str(targets)]}]
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={found.address}"]
    with (
        discover(found, folder, targets),
        _alertmanager(found, folder / "alertmanager"),
        _running(found, [str(program), *arguments], f"{found.address}/-/ready", folder / "log"),
    ):
        yield


@contextmanager
def _alertmanager(found: Prometheus, folder: Path) -> Iterator[None]:
    """Run Alertmanager with a receiver that sends nothing."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    require(program, "alertmanager (apt-get install prometheus-alertmanager)")
    folder.mkdir()
    file = folder / "alertmanager.yaml"
    file.write_text(yaml.safe_dump({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}), "utf-8")
    storage = [f"--config.file={file}", f"--storage.path={folder}/data"]
    addresses = [f"--web.listen-address={found.alertmanager}", "--cluster.listen-address="]
    command = [str(program), *storage, *addresses]
    with _running(found, command, f"{found.alertmanager}/-/ready", folder / "log"):
        yield


@contextmanager
def _running(found: Prometheus, command: list[str], ready: str, log: Path) -> Iterator[None]:
    """Run a program in the cluster's network; the context begins when its page `ready` answers."""
    cluster = found.cluster

    def is_ready() -> bool:
        assert process.poll() is None, f"{command[0]} ended: {log.read_text()}"
        return found.fetcher.answers(f"http://{ready}")

    with log.open("wb") as output:
        argv = [*cluster.command_prefix, *command]
        process = subprocess.Popen(argv, env=cluster.environment, stdout=output, stderr=output)
        try:
            eventually(f"{command[0]} ready", is_ready)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def discover(found: Prometheus, folder: Path, targets: Path) -> Iterator[None]:
    """Maintain a file of the cluster's pods, with the labels that `kubernetes_sd_configs` (role pod) gives them.

    Debian builds Prometheus without Kubernetes discovery. So the test does this one part of it, and the rest of the
    sample, all of its relabelling included, is what Prometheus runs.
    """
    stop = threading.Event()
    proxy = f"127.0.0.1:{found.port + 2}"

    def maintain(fetcher: Fetcher) -> None:
        while not stop.wait(0.5):
            # While the API server does not answer, the last targets stay, as in Prometheus.
            with suppress(FetchError):
                pods = fetcher.get_json(f"http://{proxy}/api/v1/pods")["items"]
                groups = [group for pod in pods for group in _targets_of(pod)]
                part = targets.with_suffix(".part")
                part.write_text(json.dumps(groups))
                part.rename(targets)

    command = [str(found.cluster.kubectl), "proxy", f"--port={found.port + 2}"]
    with (
        _running(found, command, f"{proxy}/readyz", folder / "proxy.log"),
        fetcher_in(found.cluster) as fetcher,  # separate, so that a slow request does not delay the queries of tests
        ThreadPoolExecutor(1) as executor,
    ):
        maintaining = executor.submit(maintain, fetcher)
        try:
            yield
        finally:
            stop.set()
        maintaining.result()


def _targets_of(pod: Body) -> Iterator[Body]:
    """Yield one target for each declared port of each container, as Prometheus' discovery/kubernetes/pod.go does."""
    address = pod["status"].get("podIP")
    labels = {
        "namespace": pod["metadata"]["namespace"],
        "pod_name": pod["metadata"]["name"],
        "pod_phase": pod["status"]["phase"],
    }
    for kind in ("annotation", "label"):
        for key, value in pod["metadata"].get(f"{kind}s", {}).items():
            labels[f"pod_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', key)}"] = value
    for container in pod["spec"]["containers"] if address else ():
        for port in container.get("ports", ()):
            yield {
                "targets": [f"{address}:{port['containerPort']}"],
                "labels": {f"__meta_kubernetes_{key}": value for key, value in labels.items()},
            }
