"""prepare: the data of a job, tokenized ahead."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from trainyard.admission import load_manifest
from trainyard.config import RunConfig
from trainyard.manifest import ManifestError
from trainyard.resolve import resolve
from trainyard_cli.commands.options import Manifest
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import print_error, progress_bar, stdout_console


def prepare(
    file: Manifest,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            help="Folder for the tokens, used instead of spec.trainer.data.cache. A job finds them there if its cache "
            "is the same folder.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", "-p", min=1, help="Processes that encode. [default: all CPUs]", show_default=False),
    ] = None,
) -> None:
    """Tokenize the data of a TrainingJob ahead of it, on this machine.

    A job with spec.trainer.data.cache on a volume that holds the result begins to train at once. The command can be
    interrupted, and resumes where it was; several machines that share the folder divide the work.

    Exit codes: 0 the data is prepared; 2 the manifest or what it names is wrong; 130 interrupted.
    """
    try:
        config = _config(file, cache)
    except ManifestError as error:
        raise report_problems(file, error.problems) from None
    if processes is not None:
        os.environ["OMP_NUM_THREADS"] = str(processes)
    try:
        sources = _prepare(config)
    except ValueError as error:  # ConfigError is one
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    for name, tokens, folder in sources:
        stdout_console().print(f"{name}: {tokens:,} tokens in {folder}", highlight=False, soft_wrap=True)


def _config(file: Path, cache: Path | None) -> RunConfig:
    """Return the configuration of the job in a manifest.

    Raises:
        ManifestError: the manifest is wrong, or has no data to prepare.
    """
    job = load_manifest(read_manifest(file))
    if job.spec.trainer is None or job.spec.trainer.data.source == "table":
        raise ManifestError(["spec.trainer.data: there is nothing to prepare, only documents become tokens; remove it"])
    if importlib.util.find_spec("tokenizers") is None:
        fix = 'install the extra "trainer" from a checkout of Trainyard: uv tool install ".[cli,trainer]"'
        raise ManifestError([f"spec.trainer.data: its preparation needs the package tokenizers; {fix}"])
    config = resolve(job)
    folder = str(cache.absolute()) if cache is not None else job.spec.trainer.data.cache
    if folder is None:
        raise ManifestError(
            ["spec.trainer.data.cache: the tokens need a folder; set it to one that the workers mount, or use --cache"]
        )
    data = config.trainer.data.replace(cache=folder)
    return config.replace(trainer=config.trainer.replace(data=data))


def _prepare(config: RunConfig) -> list[tuple[str, int, Path]]:
    """Return name, tokens and folder of each source.

    Raises:
        ValueError: the data is missing or unreadable.
    """
    from trainyard_trainer.data.sources import prepare_sources  # imported late: other commands need no trainer

    columns = (TextColumn("preparing"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        task = progress.add_task("", total=1.0)
        prepared = prepare_sources(config, lambda share, _seconds: progress.update(task, completed=share))
    return [(source.name, source.tokens.count, source.tokens.files[0].path.parent) for source in prepared.sources]
