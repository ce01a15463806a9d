"""Reading the manifest that a command is given, and saying what is wrong with it."""

import sys
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from trainyard.manifest import ManifestError
from trainyard_cli.ending import EXIT_BAD_INPUT


def read_manifest(file: Path) -> str:
    """Text of a file, or of standard input for `-`.

    Raises:
        ManifestError: there is no such file, or it cannot be read.
    """
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        raise ManifestError(["no such file; check the path"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([f"cannot be read: {error}"]) from None


def refuse(screen: Console, file: Path, problems: Iterable[str]) -> typer.Exit:
    """Print one line for each problem; the result is to be raised."""
    for problem in problems:
        screen.print(f"[red]error[/]: {escape(f'{file}: {problem}')}", highlight=False, soft_wrap=True)
    return typer.Exit(EXIT_BAD_INPUT)
