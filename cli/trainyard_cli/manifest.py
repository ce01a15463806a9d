"""Read the manifest that a command is given, and report what is wrong with it."""

import sys
from collections.abc import Iterable
from pathlib import Path

import typer

from trainyard.manifest import ManifestError
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import print_error


def read_manifest(file: Path) -> str:
    """Return the text of a file, or of standard input for `-`.

    Raises:
        ManifestError: the file does not exist, or cannot be read as UTF-8 text.
    """
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except FileNotFoundError:
        raise ManifestError(["no such file; check the path"]) from None
    except UnicodeDecodeError as error:
        raise ManifestError([f"is not UTF-8 text: {error}; give a YAML or JSON file"]) from None
    except OSError as error:
        raise ManifestError([f"cannot be read: {error.strerror or error}; check the path"]) from None


def report_problems(file: Path, problems: Iterable[str]) -> typer.Exit:
    """Print one line for each problem, and return the exception with which the command ends."""
    for problem in problems:
        print_error(f"{file}: {problem}")
    return typer.Exit(EXIT_BAD_INPUT)
