"""Tests of alerts as promtool runs them, written as series and minutes."""

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
"""promtool's notation of values, one a minute, by series."""


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run promtool."""
    program = shutil.which("promtool")
    require(program, "promtool (apt-get install prometheus)")
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Case:
    """One alert in one story."""

    story: str
    alert: str
    series: Series
    fires: Mapping[int, str] = field(default_factory=dict)
    """Description at a minute."""
    silent: Sequence[int] = ()
    """Minutes at which it does not fire."""
    labels: Mapping[str, str] = field(default_factory=lambda: {"namespace": "ml", "job_name": "llama"})

    def to_dict(self) -> dict[str, Any]:
        """As one entry of `tests` in promtool's files."""
        checks = [
            *((minute, self._expected(text)) for minute, text in self.fires.items()),
            *((m, []) for m in self.silent),
        ]
        return {
            "name": f"{self.alert}: {self.story}",
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
    """Run promtool on the cases, one after the other."""
    file = folder / "tests.yaml"
    content = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [case.to_dict() for case in cases]}
    file.write_text(yaml.safe_dump(content), "utf-8")
    return promtool("test", "rules", file)


def conditions(**values: str) -> dict[str, str]:
    """Conditions of the job: true all the time, or as given. Those that are not named are false."""
    known = ("Created", "Suspended", "Running", "Progressing", "Degraded", "Restarting", "Succeeded", "Failed")
    return {f'trainyard_job_condition{{{JOB},condition="{name}"}}': values.get(name, "0x2000") for name in known}


RUNS = conditions(Running="1x2000", Progressing="1x2000")
"""A job that runs and makes steps."""


def worker(name: str, values: str, labels: str = "", pod: str = POD) -> dict[str, str]:
    """A series of a worker."""
    return {f"{name}{{{pod}{labels and ','}{labels}}}": values}


def pace(seconds: int, times: str = "x2000") -> dict[str, str]:
    """So many seconds for each step."""
    total, count = (f"trainyard_step_duration_seconds_{part}" for part in ("sum", "count"))
    phase = 'phase="passes"'
    return worker(total, f"0+60{times}", phase) | worker(count, f"0+{60 / seconds:g}{times}", phase)
