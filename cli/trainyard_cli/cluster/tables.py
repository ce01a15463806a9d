"""How jobs, pods and events look in a terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition, ConditionType, Phase
from trainyard_cli.cluster.client import Body
from trainyard_cli.report import duration

COLOURS = {
    Phase.RUNNING: "green",
    Phase.SUCCEEDED: "bright_green",
    Phase.RESTARTING: "yellow",
    Phase.PENDING: "yellow",
    Phase.SUSPENDED: "blue",
    Phase.FAILED: "red",
}
GOOD = (ConditionType.RUNNING, ConditionType.PROGRESSING, ConditionType.SUCCEEDED, ConditionType.CREATED)
"""Conditions that are a good sign while they hold."""


def plain_table(*columns: str) -> Table:
    """Columns without lines, as kubectl has them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != "MESSAGE", overflow="fold")
    return table


def age(stamp: str | None, now: datetime) -> str:
    """Time since a time stamp of the API server."""
    return duration((now - datetime.fromisoformat(stamp)).total_seconds()) if stamp else ""


def phase_text(job: TrainingJob) -> Text:
    """The phase, in its colour; Degraded where that holds."""
    phase = job.status.phase or Phase.PENDING
    text = Text(phase, style=COLOURS[phase])
    if job.status.is_true(ConditionType.DEGRADED):
        text.append(" (degraded)", style="yellow")
    return text


def job_table(bodies: Sequence[Body], jobs: Sequence[TrainingJob], now: datetime, *, everywhere: bool = False) -> Table:
    """One line for each job."""
    columns = ["NAME", "PHASE", "STEP", "LOSS", "TOKENS/S", "ETA", "WORKERS", "RESTARTS", "GOODPUT", "AGE"]
    table = plain_table(*(["NAMESPACE"] if everywhere else []), *columns)
    for body, job in zip(bodies, jobs, strict=True):
        status, progress = job.status, job.status.progress
        figures = ["", "", "", ""]
        if progress is not None:
            total = f"/{progress.total_steps}" if progress.total_steps else ""
            speed, eta = progress.tokens_per_second, progress.eta_seconds
            figures = [
                f"{progress.step}{total}",
                "" if progress.loss is None else f"{progress.loss:.4f}",
                "" if speed is None else f"{speed:,.0f}",
                "" if eta is None or status.finished else duration(eta),
            ]
        goodput = status.goodput.ratio if status.goodput else None
        table.add_row(
            *([job.metadata.namespace] if everywhere else []),
            job.metadata.name,
            phase_text(job),
            *figures,
            f"{status.workers.running}/{job.spec.workers.replicas}",
            str(status.restarts),
            "" if goodput is None else f"{goodput:.0%}",
            age(body["metadata"].get("creationTimestamp"), now),
        )
    return table


def progress_bar(job: TrainingJob) -> Table | None:
    """How far the job is; None if that is not known."""
    progress = job.status.progress
    if progress is None or not progress.total_steps:
        return None
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=60)
    line.add_row(bar, f"{progress.step / progress.total_steps:.0%}")
    return line


def condition_table(conditions: Sequence[Condition], now: datetime) -> Table:
    """One line for each condition, those that hold in colour."""
    table = plain_table("CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE")
    for condition in conditions:
        holds = condition.status == "True"
        style = ("green" if condition.type in GOOD else "yellow") if holds else "dim"
        if holds and condition.type == ConditionType.FAILED:
            style = "red"
        table.add_row(
            condition.type,
            condition.status,
            duration((now - condition.last_transition_time).total_seconds()),
            condition.reason,
            condition.message,
            style=style,
        )
    return table


def event_table(events: Sequence[Body], now: datetime) -> Table:
    """One line for each event, the oldest first."""
    table = plain_table("AGE", "TYPE", "REASON", "MESSAGE")
    for event in events:
        stamp = event.get("lastTimestamp") or event.get("eventTime")
        style = "yellow" if event["type"] == "Warning" else ""
        table.add_row(age(stamp, now), event["type"], event["reason"], event["message"], style=style)
    return table


def pod_row(pod: Body) -> tuple[str, str, str]:
    """Name, node and state of a pod."""
    status: dict[str, Any] = pod.get("status") or {}
    state = "Terminating" if "deletionTimestamp" in pod["metadata"] else status.get("phase", "")
    return pod["metadata"]["name"], pod["spec"].get("nodeName", ""), state


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)
