"""Recording rules, alerts and groups, and their form in a rule file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trainyard_monitoring.timing import RUNBOOKS, duration


@dataclass(frozen=True)
class Record:
    """A recording rule. Its name is level:metric:operation; the level `job` stands for namespace and job_name."""

    name: str
    expression: str

    def to_dict(self) -> dict[str, Any]:
        """Return the form in a rule file."""
        return {"record": self.name, "expr": self.expression}


@dataclass(frozen=True)
class Alert:
    """An alert. Its runbook is the page with its name."""

    name: str
    severity: str
    """critical: training time is being lost, or jobs are unmonitored; warning: look at it today."""
    expression: str
    wait: float
    """Seconds for which the expression must hold before the alert fires; 0: fires immediately."""
    summary: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        """Return the form in a rule file."""
        return {
            "alert": self.name,
            "expr": self.expression,
            **({"for": duration(self.wait)} if self.wait else {}),
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that Prometheus evaluates in sequence."""

    name: str
    rules: Sequence[Record | Alert]

    def to_dict(self) -> dict[str, Any]:
        """Return the form in a rule file."""
        return {"name": self.name, "rules": [rule.to_dict() for rule in self.rules]}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as block scalars."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(groups: Sequence[Group]) -> str:
    """Return a rule file for Prometheus."""
    content = {"groups": [group.to_dict() for group in groups]}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
