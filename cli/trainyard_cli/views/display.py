"""Live progress of a job on standard error: one line that is redrawn on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from trainyard.resource.job import TrainingJob
from trainyard_cli.views.formatting import progress_line
from trainyard_operator.lifecycle.status_builder import Event

PLAIN_LINE_SECONDS = 5.0
"""Seconds between two plain lines of the same phase."""


class Display:
    """Progress of one job, updated by `show`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_events = 0
        self._last_line = (("", ""), 0.0)
        self._bar = Progress(
            TextColumn("[bold]{task.fields[phase]}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[progress]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", phase="Pending", progress="", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, job: TrainingJob, events: list[Event]) -> None:
        """Show the job's current state, and the events that have not been shown."""
        for event in events[self._shown_events :]:
            colour = "yellow" if event.type == "Warning" else "green"
            line = f"[{colour}]{escape(event.reason)}[/]: {escape(event.message)}"
            self._console.print(line, highlight=False, soft_wrap=True)
        self._shown_events = len(events)
        progress = job.status.progress
        phase = str(job.status.phase or "Pending")
        self._bar.update(
            self._task,
            phase=phase,
            progress=progress_line(job),
            total=progress.total_steps if progress else None,
            completed=progress.step if progress else 0,
        )
        if not self._console.is_terminal:
            self._print_plain(phase, job)

    def _print_plain(self, phase: str, job: TrainingJob) -> None:
        """Print a line for each new phase, and every few seconds for new progress."""
        state, now = (phase, progress_line(job)), time.monotonic()
        previous, printed_at = self._last_line
        if state != previous and (state[0] != previous[0] or now - printed_at >= PLAIN_LINE_SECONDS):
            self._console.print(f"{phase} {state[1]}".strip(), markup=False, highlight=False, soft_wrap=True)
            self._last_line = (state, now)
