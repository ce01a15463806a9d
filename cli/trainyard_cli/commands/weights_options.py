"""Arguments of the commands that take a folder of weights, and how these commands report mistakes."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from trainyard.admission import load_manifest
from trainyard.manifest import ManifestError
from trainyard.resource.training import TrainerSpec
from trainyard_cli.commands.options import folder_or_url, local_file, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import print_error, progress_bar

if TYPE_CHECKING:
    from trainyard_trainer.evaluation.folder import FolderData

Weights = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="Folder of weights, or its URL (s3://, gs://, az://): a Hugging Face folder, a checkpoint, or the folder "
        "of a run (its newest checkpoint).",
        callback=folder_or_url,
    ),
]
DataPath = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="File or folder of data, or its URL (.npz for a table; text, .jsonl, .parquet, .bin or a datasets folder "
        "for a language model), all of which is used. [default: the held-out samples of the run]",
        show_default=False,
        callback=folder_or_url,
    ),
]
ManifestPath = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        help="Manifest of a TrainingJob whose data is used: its held-out samples, or all if none are held out.",
        show_default=False,
        callback=local_file,
    ),
]
ReportFolder = Annotated[
    str,
    typer.Option(
        "--report", help="Folder for the report, or its URL: a page of HTML, and JSON.", callback=folder_or_url
    ),
]


@contextmanager
def mistakes_are_bad_input() -> Iterator[None]:
    """Turn errors about what the user has given into one line and an exit code."""
    try:
        yield
    except ValueError as error:  # ConfigError and WeightsError are ValueErrors
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, "storage", "choose a folder that can be used"))
        raise typer.Exit(EXIT_BAD_INPUT) from None


def needs_torch() -> None:
    """Check that the trainer's packages are installed.

    Raises:
        ValueError: they are not.
    """
    if importlib.util.find_spec("torch") is None:
        fix = 'install the extra "trainer" from a checkout of Trainyard: uv tool install ".[cli,trainer]"'
        raise ValueError(f"weights are read with torch, which is not installed; {fix}")


def open_data(weights: str, data: str | None, manifest: Path | None, samples: int | None) -> "FolderData":
    """Return a folder of weights with its data, prepared.

    Args:
        weights: folder of weights.
        data: --data.
        manifest: --manifest.
        samples: most samples, see `trainyard_trainer.data.evaluation_sets`.

    Raises:
        ValueError: there are no weights, or no such data, or the data do not fit the model.
    """
    needs_torch()
    if data is not None and manifest is not None:
        raise ValueError("--data and --manifest both name data; keep one of them")
    from trainyard_trainer.evaluation.folder import DataChoice, open_folder  # imported late: it needs torch
    from trainyard_trainer.runtime.object_store import location

    choice = DataChoice(None if data is None else location(data), None if manifest is None else _trainer(manifest))
    with progress_bar(TextColumn("preparing"), BarColumn()) as progress:
        task = progress.add_task("", total=1.0)
        return open_folder(location(weights), choice, samples, lambda share, _: progress.update(task, completed=share))


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, and yield what advances it."""
    with progress_bar(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.advance(task, done)


def _trainer(manifest: Path) -> TrainerSpec:
    try:
        job = load_manifest(read_manifest(manifest), memory=False)
        if job.spec.trainer is None:
            raise ManifestError(["spec.trainer: is absent, so that the manifest names no data; add it"])
    except ManifestError as error:
        raise report_problems(manifest, error.problems) from None
    return job.spec.trainer
