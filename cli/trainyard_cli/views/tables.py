"""Tables of jobs, conditions and events."""

from collections.abc import Sequence
from datetime import datetime

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import SUMMARY_CONDITIONS, Condition, ConditionType, Phase
from trainyard_cli.cluster.client import Body
from trainyard_cli.views.formatting import duration, throughput

COLOURS = {
    Phase.RUNNING: "green",
    Phase.SUCCEEDED: "bright_green",
    Phase.RESTARTING: "yellow",
    Phase.PENDING: "yellow",
    Phase.SUSPENDING: "blue",
    Phase.SUSPENDED: "blue",
    Phase.FAILED: "red",
}
POSITIVE_CONDITIONS = (
    ConditionType.RUNNING,
    ConditionType.PROGRESSING,
    ConditionType.SUCCEEDED,
    ConditionType.CREATED,
)
"""Conditions whose status is True in a healthy job."""


def plain_table(*columns: str) -> Table:
    """Return an empty table with these columns and without lines, as kubectl prints it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != "MESSAGE", overflow="fold")
    return table


def age(timestamp: str | None, now: datetime) -> str:
    """Return the time since a timestamp of the API server."""
    return duration((now - datetime.fromisoformat(timestamp)).total_seconds()) if timestamp else ""


def phase_text(job: TrainingJob) -> Text:
    """Return the phase in its colour, with "(degraded)" if the job is."""
    phase = job.status.phase or Phase.PENDING
    text = Text(phase, style=COLOURS[phase])
    if job.status.is_true(ConditionType.DEGRADED):
        text.append(" (degraded)", style="yellow")
    return text


def job_table(
    bodies: Sequence[Body], jobs: Sequence[TrainingJob], now: datetime, *, all_namespaces: bool = False
) -> Table:
    """Return a table with one line for each job."""
    columns = ["NAME", "PHASE", "STEP", "LOSS", "THROUGHPUT", "ETA", "WORKERS", "RESTARTS", "GOODPUT", "AGE"]
    table = plain_table(*(["NAMESPACE"] if all_namespaces else []), *columns)
    for body, job in zip(bodies, jobs, strict=True):
        status, progress = job.status, job.status.progress
        cells = ["", "", "", ""]
        if progress is not None:
            total = f"/{progress.total_steps}" if progress.total_steps else ""
            eta = progress.eta_seconds
            cells = [
                f"{progress.step}{total}",
                "" if progress.loss is None else f"{progress.loss:.4f}",
                throughput(job) or "",
                "" if eta is None or status.finished else duration(eta),
            ]
        goodput = status.goodput.ratio if status.goodput else None
        table.add_row(
            *([job.metadata.namespace] if all_namespaces else []),
            job.metadata.name,
            phase_text(job),
            *cells,
            f"{status.workers.running}/{job.spec.workers.replicas}",
            str(status.restarts),
            "" if goodput is None else f"{goodput:.0%}",
            age(body["metadata"].get("creationTimestamp"), now),
        )
    return table


def progress_bar(job: TrainingJob) -> Table | None:
    """Return a bar of the steps done, or None if the total is not known."""
    progress = job.status.progress
    if progress is None or not progress.total_steps:
        return None
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=60)
    line.add_row(bar, f"{progress.step / progress.total_steps:.0%}")
    return line


def condition_table(conditions: Sequence[Condition], now: datetime) -> Table:
    """Return a table with one line for each condition, coloured where its status is True.

    Conditions that only summarize others for tools are left out.
    """
    table = plain_table("CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE")
    for condition in conditions:
        if condition.type in SUMMARY_CONDITIONS:
            continue
        is_true = condition.status == "True"
        style = ("green" if condition.type in POSITIVE_CONDITIONS else "yellow") if is_true else "dim"
        if is_true and condition.type == ConditionType.FAILED:
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
    """Return a table with one line for each event, oldest first."""
    table = plain_table("AGE", "TYPE", "REASON", "MESSAGE")
    for event in events:
        timestamp = event.get("lastTimestamp") or event.get("eventTime")
        style = "yellow" if event["type"] == "Warning" else ""
        times = f" ({count} times)" if (count := event.get("count") or 1) > 1 else ""
        table.add_row(age(timestamp, now), event["type"], event["reason"], event["message"] + times, style=style)
    return table
