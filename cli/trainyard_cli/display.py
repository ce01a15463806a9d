"""What a person sees of a running job: one live line on a terminal, plain lines elsewhere. On standard error."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType
from trainyard_cli.report import duration
from trainyard_operator.lifecycle.status_builder import Event

PLAIN_EVERY = 5.0
"""Seconds between two plain lines."""


class Display:
    """Shows the state of one job as it changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._last = (("", ""), 0.0)
        self._bar = Progress(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", phase="Pending", figures="", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, job: TrainingJob, events: list[Event]) -> None:
        """Show the job as it is now, and the events that are new."""
        for event in events[self._told :]:
            colour = "yellow" if event.type == "Warning" else "green"
            line = f"[{colour}]{escape(event.reason)}[/]: {escape(event.message)}"
            self._console.print(line, highlight=False, soft_wrap=True)
        self._told = len(events)
        progress = job.status.progress
        phase = str(job.status.phase or "Pending")
        self._bar.update(
            self._task,
            phase=phase,
            figures=figures(job),
            total=progress.total_steps if progress else None,
            completed=progress.step if progress else 0,
        )
        if not self._console.is_terminal:
            self._plain(phase, job)

    def _plain(self, phase: str, job: TrainingJob) -> None:
        """A line for each new phase, and every few seconds for new figures."""
        state, now = (phase, figures(job)), time.monotonic()
        before, at = self._last
        if state != before and (state[0] != before[0] or now - at >= PLAIN_EVERY):
            self._console.print(f"{phase} {state[1]}".strip(), markup=False, highlight=False, soft_wrap=True)
            self._last = (state, now)


def figures(job: TrainingJob) -> str:
    """Step, loss, throughput and remaining time, or what the job is waiting for."""
    status = job.status
    progress = status.progress
    if progress is None or progress.attempt != status.attempt:
        waiting = status.condition(ConditionType.PROGRESSING) or status.condition(ConditionType.RUNNING)
        return waiting.message if waiting and not status.finished else ""
    parts = [f"step {progress.step}" + (f"/{progress.total_steps}" if progress.total_steps else "")]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds and not status.finished:
        parts.append(f"ETA {duration(progress.eta_seconds)}")
    return "  ".join(parts)
