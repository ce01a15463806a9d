"""The status of a job as a table, and its loss and throughput as a plot."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase


@dataclass(frozen=True, slots=True)
class StepReport:
    """One report of rank 0, as the trainer logs it."""

    attempt: int
    step: int
    loss: float
    """Not a number where it was none."""
    tokens_per_second: float


def read_reports(folder: Path) -> list[StepReport]:
    """The reports in the logs of all attempts of a run, in order."""
    logs = (log.read_text("utf-8", "replace").splitlines() for log in folder.glob("pods/*/log"))
    return sorted((r for lines in logs for r in reports_in(lines)), key=lambda r: (r.attempt, r.step))


def reports_in(lines: Iterable[str]) -> Iterator[StepReport]:
    """The reports among the lines of a worker's log."""
    for line in lines:
        if '"tokensPerSecond"' not in line:
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            yield StepReport(
                int(entry["attempt"]),
                int(entry["step"]),
                float(entry.get("loss", math.nan)),  # left out where it is not finite: JSON has no such number
                float(entry["tokensPerSecond"]),
            )
        # A line that another process has broken into, or one of a program that is not the built-in trainer.
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def plot(job: TrainingJob, reports: list[StepReport], target: Path) -> None:
    """Draw loss and throughput over the steps, one line for each attempt, into a PNG or SVG file."""
    import matplotlib as mpl  # imported late: it costs most of a second

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (losses, speeds) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    for attempt in sorted({r.attempt for r in reports}):
        mine = [r for r in reports if r.attempt == attempt]
        steps = [r.step for r in mine]
        losses.plot(steps, [r.loss for r in mine], marker=".", markersize=3, label=f"attempt {attempt}")
        speeds.plot(steps[1:], [r.tokens_per_second for r in mine[1:]], marker=".", markersize=3)
    if len({r.attempt for r in reports}) > 1:
        losses.legend()
    losses.set_title(f"{job.metadata.name}: {job.spec.workers.replicas} workers")
    losses.set_ylabel("loss (nats)")
    speeds.set_ylabel("tokens/s")
    speeds.set_xlabel("step")
    speeds.set_ylim(bottom=0)
    for axes in (losses, speeds):
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    plt.close(figure)


def duration(seconds: float) -> str:
    """A time as kubectl writes it: two units at most."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(part for part in parts[:2] if not part.startswith("0") or len(parts) == 1)


def status_table(job: TrainingJob, now: datetime) -> Table:
    """The status, as rows of name and value."""
    status, progress = job.status, job.status.progress
    table = Table(
        title=f"TrainingJob {job.metadata.namespace}/{job.metadata.name}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("phase", status.phase or Phase.PENDING)
    current = job.effective_job.spec
    fewer = f" (of {job.spec.workers.replicas})" if current.workers.replicas < job.spec.workers.replicas else ""
    table.add_row("workers", f"{current.workers.replicas}{fewer} x {current.procs_per_worker} ranks")
    if status.avoided_nodes:
        table.add_row("avoided nodes", ", ".join(status.avoided_nodes))
    if progress:
        total = f" of {progress.total_steps}" if progress.total_steps else ""
        table.add_row("step", f"{progress.step}{total}")
        for name, value, form in (
            ("loss", progress.loss, ".4f"),
            ("learning rate", progress.learning_rate, ".3g"),
            _speed(job, progress),
        ):
            if value is not None:
                table.add_row(name, format(value, form))
        if progress.mfu is not None:
            table.add_row("MFU", f"{progress.mfu:.1%}")
        if progress.eta_seconds and not status.finished:
            table.add_row("ETA", duration(progress.eta_seconds))
        if progress.checkpoint_step is not None:
            table.add_row("checkpoint", f"step {progress.checkpoint_step}")
        for name, value in (progress.metrics or {}).items():
            table.add_row(f"held-out {name}", format(value, ".4f"))
    table.add_row("attempts", f"{status.attempt} ({status.restarts} restarts)")
    if status.start_time:
        table.add_row("time", duration((_end(job, now) - status.start_time).total_seconds()))
    if (goodput := status.goodput) and goodput.ratio is not None:
        others = ", ".join(f"{part} {duration(s)}" for part, s in goodput.parts().items() if s and part != "productive")
        table.add_row("goodput", f"{goodput.ratio:.0%}" + (f" ({others})" if others else ""))
    if failure := status.last_failure:
        table.add_row("last failure", f"{failure.pod or 'group'}: {failure.reason}: {failure.message}")
    return table


def _speed(job: TrainingJob, progress: Progress) -> tuple[str, float | None, str]:
    """Throughput in the unit of the data: a table has samples, and no tokens."""
    if job.spec.trainer is not None and job.spec.trainer.data.source == "table":
        return "samples/s", progress.samples_per_second, ",.0f"
    return "tokens/s", progress.tokens_per_second, ",.0f"


def _end(job: TrainingJob, now: datetime) -> datetime:
    """When the job ended or was suspended; of one that goes on: now."""
    suspended = job.status.condition(ConditionType.SUSPENDED)
    if suspended and suspended.status == "True":
        return suspended.last_transition_time
    return job.status.completion_time or now
