"""A real Prometheus with the generated rules, and a real Alertmanager, on free ports of this machine."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.need import require
from trainyard_monitoring.timing import RUNBOOKS

SCRAPE = "500ms"
_ALERTMANAGER = {"route": {"receiver": "nobody", "group_wait": "0s"}, "receivers": [{"name": "nobody"}]}


def flaws(alert: Mapping[str, Any]) -> list[str]:
    """Return the faults in the texts of an alert from Alertmanager: failed templates, a wrong runbook."""
    notes, name = alert["annotations"], alert["labels"]["alertname"]
    found = [f"{name}: {key}: {text}" for key, text in notes.items() if "<no value>" in text or "error" in text]
    if notes["runbook_url"] != f"{RUNBOOKS}/{name}.md":
        found.append(f"{name}: its runbook is {notes['runbook_url']}")
    return found


@dataclass(frozen=True)
class Alertmanager:
    """A running Alertmanager."""

    address: str

    async def active(self) -> list[dict[str, Any]]:
        """Return the firing alerts from its API."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.address}/api/v2/alerts") as answer:
            assert answer.status == 200, await answer.text()
            found: list[dict[str, Any]] = await answer.json()
            return found


@contextmanager
def _daemon(command: Sequence[str | Path], log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output)
    try:
        yield process
        assert process.poll() is None, f"it ended unexpectedly:\n{log.read_text()}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def run_alertmanager(folder: Path) -> Iterator[Alertmanager]:
    """Run Alertmanager; it listens before this returns."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    require(program, "alertmanager (apt-get install prometheus-alertmanager)")
    folder.mkdir()
    config, log = folder / "alertmanager.yaml", folder / "log"
    config.write_text(yaml.safe_dump(_ALERTMANAGER), "utf-8")
    arguments = [f"--config.file={config}", f"--storage.path={folder}/data", "--cluster.listen-address="]
    with _daemon([str(program), *arguments, "--web.listen-address=127.0.0.1:0"], log) as process:
        yield Alertmanager(_address(process, log))


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the address from the log of a daemon that chose its port."""
    deadline = time.monotonic() + 30
    while not (found := re.search(r'msg="Listening on" address=(\S+)', log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]


@contextmanager
def run_prometheus(
    folder: Path, rules: str, alertmanager: Alertmanager, server: str, targets: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """Run Prometheus.

    Args:
        folder: new folder for its files.
        rules: content of the rule file.
        alertmanager: receives the alerts.
        server: address of all targets.
        targets: labels of each target, by path. Labels of the page override them.
    """
    program = shutil.which("prometheus")
    require(program, "prometheus (apt-get install prometheus)")
    folder.mkdir()
    (folder / "rules.yaml").write_text(rules, "utf-8")
    statics = [
        {"targets": [server], "labels": {"__metrics_path__": path, "instance": path, **labels}}
        for path, labels in targets.items()
    ]
    config = {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
        "rule_files": ["rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.address]}]}]},
        "scrape_configs": [{"job_name": "tests", "honor_labels": True, "static_configs": statics}],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    # Alerts sent in the first five seconds, before Prometheus has discovered Alertmanager, are lost; it sends them
    # again. An alert that is not sent again for four times as long counts as resolved.
    arguments = [f"--config.file={file}", f"--storage.tsdb.path={folder}/data", "--rules.alert.resend-delay=5s"]
    arguments.append("--web.listen-address=127.0.0.1:0")
    with _daemon([str(program), *arguments], folder / "log"):
        yield
