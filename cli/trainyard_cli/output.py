"""Forms in which commands print."""

import json
from enum import StrEnum
from typing import Any

import typer
import yaml


class Output(StrEnum):
    """Form of what a command prints on standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def write(value: Any, output: Output) -> None:
    """Print a value as JSON or YAML."""
    if output is Output.JSON:
        typer.echo(json.dumps(value, indent=2))
    else:
        typer.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
