"""Forms in which commands print."""

import json
import os
import sys
from enum import StrEnum
from typing import Any

import typer
import yaml
from rich.console import Console


class Output(StrEnum):
    """Form of what a command prints on standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def screen() -> Console:
    """Standard output. What is not a terminal has no edge at which a line would have to be folded.

    Text is shown as it is: messages of workers begin with "[rank0]:", which rich would take for its markup.
    """
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=1000 if wide else None, markup=False)


def write(value: Any, output: Output) -> None:
    """Print a value as JSON or YAML."""
    if output is Output.JSON:
        typer.echo(json.dumps(value, indent=2))
    else:
        typer.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
