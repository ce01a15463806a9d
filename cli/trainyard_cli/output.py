"""What commands print: results on standard output, notices and errors on standard error."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class Output(StrEnum):
    """Format of the result on standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def stdout_console() -> Console:
    """Return a console on standard output; lines are folded on a terminal only.

    Text is printed literally: messages of workers may begin with "[rank0]:", which rich would parse as markup.
    """
    unlimited = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=1000 if unlimited else None, markup=False)


def progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Return a bar on standard error, which is drawn on a terminal only and removed at the end."""
    console = stderr_console()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def step_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on standard error; yields what takes the name of the work, how much is done, and how much there is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield report


def stderr_console() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True)


def write(value: Any, output: Output) -> None:
    """Print a value as JSON or YAML on standard output."""
    if output is Output.JSON:
        typer.echo(json.dumps(value, indent=2))
    else:
        typer.echo(yaml.safe_dump(value, sort_keys=False), nl=False)


def print_error(message: str) -> None:
    """Print one line that begins with "error:" on standard error."""
    print_notice(message, label="error", style="red")


def print_notice(message: str, *, label: str = "", style: str = "") -> None:
    """Print one line on standard error, after a coloured label if one is given."""
    line = Text.assemble((label, style), f": {message}") if label else Text(message)
    stderr_console().print(line, highlight=False, soft_wrap=True)
