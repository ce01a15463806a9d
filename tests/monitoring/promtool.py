"""Unit tests of alerts for promtool, as series with one value per minute."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.need import require
from trainyard_monitoring.rule_file import rule_groups
from trainyard_monitoring.rules import Alert
from trainyard_monitoring.timing import RUNBOOKS

RULES = Path(__file__).parents[2] / "charts" / "trainyard" / "files" / "rules.yaml"
JOB = 'namespace="ml",job_name="llama"'
POD = f'{JOB},pod="llama-1-0",instance="10.0.0.1:9400"'
ALERTS = {rule.name: rule for group in rule_groups() for rule in group.rules if isinstance(rule, Alert)}

Series = Mapping[str, str]
"""Values by series, one per minute, in promtool's notation."""


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run promtool."""
    program = shutil.which("promtool")
    require(program, "promtool (apt-get install prometheus)")
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Case:
    """The expected state of one alert for given series."""

    description: str
    alert: str
    series: Series
    fires: Mapping[int, str] = field(default_factory=dict)
    """Expected description of the alert, by minute."""
    silent: Sequence[int] = ()
    """Minutes at which the alert does not fire."""
    labels: Mapping[str, str] = field(default_factory=lambda: {"namespace": "ml", "job_name": "llama"})

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `tests` in promtool's file."""
        checks = [
            *((minute, self._expected(text)) for minute, text in self.fires.items()),
            *((m, []) for m in self.silent),
        ]
        return {
            "name": f"{self.alert}: {self.description}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in self.series.items()],
            "alert_rule_test": [
                {"eval_time": f"{minute}m", "alertname": self.alert, "exp_alerts": alerts} for minute, alerts in checks
            ],
        }

    def _expected(self, description: str) -> list[dict[str, Any]]:
        alert = ALERTS[self.alert]
        return [
            {
                "exp_labels": {"severity": alert.severity, **self.labels},
                "exp_annotations": {
                    "summary": alert.summary,
                    "description": description,
                    "runbook_url": f"{RUNBOOKS}/{self.alert}.md",
                },
            }
        ]


def run_cases(cases: Sequence[Case], folder: Path, rules: Path = RULES) -> "subprocess.CompletedProcess[str]":
    """Run promtool on cases."""
    file = folder / "tests.yaml"
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [case.to_dict() for case in cases]}
    file.write_text(yaml.safe_dump(content), "utf-8")
    return promtool("test", "rules", file)


def conditions(**values: str) -> dict[str, str]:
    """Return series of the job's conditions; those that are not given are always false."""
    names = ("Created", "Suspended", "Running", "Progressing", "Degraded", "Restarting", "Succeeded", "Failed")
    return {f'trainyard_job_condition{{{JOB},condition="{name}"}}': values.get(name, "0x2000") for name in names}


RUNS = conditions(Running="1x2000", Progressing="1x2000")
"""Series of a job that is running and progressing."""


def worker(name: str, values: str, labels: str = "", pod: str = POD) -> dict[str, str]:
    """Return a series of a worker."""
    return {f"{name}{{{pod}{labels and ','}{labels}}}": values}


def pace(seconds: int, times: str = "x2000") -> dict[str, str]:
    """Return the series of step durations of a given mean."""
    total, count = (f"trainyard_step_duration_seconds_{part}" for part in ("sum", "count"))
    phase = 'phase="passes"'
    return worker(total, f"0+60{times}", phase) | worker(count, f"0+{60 / seconds:g}{times}", phase)
