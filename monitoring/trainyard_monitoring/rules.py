"""What a rule file is made of, and how it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trainyard_monitoring.timing import RUNBOOKS, span


@dataclass(frozen=True)
class Record:
    """A recording rule. Names are level:metric:operation; the level `job` is namespace and job_name."""

    name: str
    expression: str

    def to_dict(self) -> dict[str, Any]:
        """As in a rule file."""
        return {"record": self.name, "expr": self.expression}


@dataclass(frozen=True)
class Alert:
    """An alert. Its runbook is the page of its name."""

    name: str
    severity: str
    """critical: time is lost now, or nobody watches; warning: look today."""
    expression: str
    wait: float
    """Seconds for which the expression must hold; 0: at once."""
    summary: str
    description: str

    def to_dict(self) -> dict[str, Any]:
        """As in a rule file."""
        return {
            "alert": self.name,
            "expr": self.expression,
            **({"for": span(self.wait)} if self.wait else {}),
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: Sequence[Record | Alert]

    def to_dict(self) -> dict[str, Any]:
        """As in a rule file."""
        return {"name": self.name, "rules": [rule.to_dict() for rule in self.rules]}


class _Dumper(yaml.SafeDumper):
    """Several lines stay several lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(groups: Sequence[Group]) -> str:
    """A rule file for Prometheus."""
    content = {"groups": [group.to_dict() for group in groups]}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
