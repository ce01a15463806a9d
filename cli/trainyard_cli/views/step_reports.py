"""Step reports of rank 0, read from the JSON lines of its log."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class StepReport:
    """One report, as the built-in trainer logs it."""

    attempt: int
    step: int
    loss: float
    """Loss in nats; NaN if it was not finite."""
    tokens_per_second: float
    samples_per_second: float = math.nan


def read_reports(folder: Path) -> list[StepReport]:
    """Return the reports in the logs of all attempts of a local run, sorted by attempt and step."""
    logs = (log.read_text("utf-8", "replace").splitlines() for log in folder.glob("pods/*/log"))
    return sorted((report for lines in logs for report in parse_reports(lines)), key=lambda r: (r.attempt, r.step))


def parse_reports(lines: Iterable[str]) -> Iterator[StepReport]:
    """Yield the reports among the lines of a worker's log."""
    for line in lines:
        if '"tokensPerSecond"' not in line:
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            yield StepReport(
                int(entry["attempt"]),
                int(entry["step"]),
                float(entry.get("loss", math.nan)),  # left out by the trainer if not finite: JSON has no NaN
                float(entry["tokensPerSecond"]),
                float(entry.get("samplesPerSecond", math.nan)),
            )
        # A line that another process has interrupted, or one of a program other than the built-in trainer.
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
