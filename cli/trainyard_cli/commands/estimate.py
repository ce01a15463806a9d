"""plan: an estimate of what a job needs, without running it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainyard.admission import load_manifest
from trainyard.estimate import estimate
from trainyard.manifest import ManifestError
from trainyard.resolve import resolve
from trainyard.resource.job import TrainingJob
from trainyard.run_record import RUN_FILE
from trainyard_cli.commands.options import Manifest
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import Output, stderr_console, write
from trainyard_cli.views.estimate import print_estimate
from trainyard_cli.views.resume import print_changes, read_record


def plan(
    file: Manifest,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format of the estimate.")] = Output.TABLE,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Folder of `trainyard run`, or of a job's checkpoints: print what resuming its run with this manifest "
            "would change.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Estimate what a TrainingJob needs, without running it: ranks, memory, computation and communication.

    It needs neither torch nor a cluster. The estimate of memory is within about 10 % of what a worker needs.

    Exit codes: 0 the job would be admitted, and fits as far as its memory is given; 2 it would be refused, or the run
    of --resume cannot be resumed with it.
    """
    try:
        job = load_manifest(read_manifest(file), memory=False)
        result = estimate(job)
        if resume is not None:
            _print_changes(job, resume)
    except ManifestError as error:
        raise report_problems(file, error.problems) from None
    if output is Output.TABLE:
        print_estimate(result, Console())
    else:
        write(result.to_dict(), output)
    if result.problems:
        raise report_problems(file, result.problems)


def _print_changes(job: TrainingJob, folder: Path) -> None:
    """Print what resuming the run of a folder with this job would change, on standard error.

    Raises:
        ManifestError: the folder has no record of a run, or the run cannot be resumed with this job.
    """
    record = read_record(folder)
    if job.spec.trainer is None or record is None:
        raise ManifestError(
            [f"--resume: {folder} has no {RUN_FILE} of a run of the built-in trainer; correct the path"]
        )
    print_changes(record, resolve(job), stderr_console())
