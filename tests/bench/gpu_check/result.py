"""What the check has found: one JSON file and one page."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Check:
    """One question, and its answer."""

    name: str
    passed: bool | None
    """None: a figure without a bound, or a question that this machine cannot answer."""
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The answer in one word."""
        return {True: "passed", False: "FAILED", None: "-"}[self.passed]


def ask(name: str, answer: Callable[[], Check]) -> Check:
    """Return the answer to a question; what goes wrong on the way is an answer as well."""
    try:
        return answer()
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        return Check(name, passed=False, detail=f"{type(error).__name__}: {error}")


def write(folder: Path, machine: dict[str, Any], checks: list[Check], seconds: float) -> None:
    """Write report.json and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "seconds": round(seconds, 1), "checks": [asdict(check) for check in checks]}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "report.md").write_text(page(machine, checks, seconds))


def page(machine: dict[str, Any], checks: list[Check], seconds: float) -> str:
    """Return the page."""
    failed = sum(check.passed is False for check in checks)
    lines = [
        "# GPU check",
        "",
        f"{sum(check.passed is True for check in checks)} passed, {failed} failed, in {seconds / 60:.1f} minutes.",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "| Check | Result | |",
        "|---|---|---|",
        *(f"| {check.name} | {check.verdict} | {_cell(check.detail)} |" for check in checks),
        "",
    ]
    for check in checks:
        if rows := check.figures.get("kernels"):
            lines += [f"## {check.name}", "", "| Share | Time | Operation |", "|---|---|---|"]
            lines += [f"| {share:.1%} | {ms:.2f} ms | `{_cell(name[:100])}` |" for name, ms, share in rows] + [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:600]
