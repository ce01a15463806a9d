"""After a run: the table of its final status, and the plot of its loss and throughput."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from trainyard.job import TrainingJob
from trainyard.status import Progress


@dataclass(frozen=True, slots=True)
class StepReport:
    """One report of rank 0, as the trainer logs it."""

    attempt: int
    step: int
    loss: float
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
        except ValueError:  # a line that another process has broken into
            continue
        yield StepReport(
            int(entry["attempt"]), int(entry["step"]), float(entry["loss"]), float(entry["tokensPerSecond"])
        )


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


def status_table(job: TrainingJob) -> Table:
    """The status, as rows of name and value."""
    status, progress = job.status, job.status.progress
    table = Table(
        title=f"TrainingJob {job.metadata.namespace}/{job.metadata.name}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("phase", str(status.phase))
    current = job.current.spec
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
    end = status.completion_time or (_last_change(job) if job.spec.suspend else None)
    if status.start_time and end:
        table.add_row("time", f"{(end - status.start_time).total_seconds():.0f} s")
    if (goodput := status.goodput) and goodput.ratio is not None:
        others = ", ".join(f"{part} {s} s" for part, s in goodput.parts().items() if s and part != "productive")
        table.add_row("goodput", f"{goodput.ratio:.0%}" + (f" ({others})" if others else ""))
    if failure := status.last_failure:
        table.add_row("last failure", f"{failure.pod or 'group'}: {failure.reason}: {failure.message}")
    return table


def _speed(job: TrainingJob, progress: Progress) -> tuple[str, float | None, str]:
    """Throughput in the unit of the data: a table has samples, and no tokens."""
    if job.spec.trainer is not None and job.spec.trainer.data.source == "classification":
        return "samples/s", progress.samples_per_second, ",.0f"
    return "tokens/s", progress.tokens_per_second, ",.0f"


def _last_change(job: TrainingJob) -> datetime | None:
    return max((c.last_transition_time for c in job.status.conditions), default=None)
