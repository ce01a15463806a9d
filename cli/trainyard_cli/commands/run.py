"""run: a job on this machine, without a cluster."""

import asyncio
import errno
import importlib.util
import os
import shutil
import time
from datetime import UTC, datetime
from glob import has_magic
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trainyard.admission import load_manifest
from trainyard.manifest import ManifestError
from trainyard.protocol.log_tail import read_end
from trainyard.resolve import resolve
from trainyard.resource.datasets import Data
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason
from trainyard.resource.urls import is_url
from trainyard_cli.commands.options import Manifest
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, exit_code
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import Output, print_error, print_notice, stderr_console, stdout_console, write
from trainyard_cli.views.display import Display
from trainyard_cli.views.plot import save_plot
from trainyard_cli.views.resume import print_changes, read_record
from trainyard_cli.views.status import status_table
from trainyard_cli.views.step_reports import read_reports

LOG_LINES = 20
"""Lines that are printed of the log of the pod that failed."""


def run(
    file: Manifest,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="Format of the final job on standard output.")
    ] = Output.TABLE,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Folder for logs, configuration, checkpoints and plot. A run continues from checkpoints in it. "
            "[default: runs/NAME-TIME]",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the checkpoints in --folder first, and start from the beginning.")
    ] = False,
) -> None:
    """Run a TrainingJob on this machine, without a cluster.

    Each worker becomes a process here, with the rendezvous, restarts and status that the operator gives it on a
    cluster. Ctrl-C suspends the job and ends its processes; a second Ctrl-C kills them.

    Exit codes: 0 the job succeeded; 1 it failed; 2 the manifest or what it names is wrong; 130 interrupted.
    """
    try:
        job = load_manifest(read_manifest(file))
        _check_machine(job)
        if fresh and job.spec.checkpoint is not None and job.spec.checkpoint.url is not None:
            raise ManifestError(["spec.checkpoint.url: --fresh removes checkpoints of --folder only; name another job"])
        target = folder or Path("runs") / f"{job.metadata.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    except ManifestError as error:
        raise report_problems(file, error.problems) from None
    try:
        prepare_folder(target, job, fresh=fresh)
    except OSError as error:
        problem = f"--folder: {error.filename or target}: {error.strerror}; choose a folder that can be written"
        print_error(problem)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    _print_changes(file, job, target)
    try:
        job, interrupted = asyncio.run(_run(job, target))
    except asyncio.CancelledError:
        print_notice("all processes were killed", label="interrupted", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if output is Output.TABLE:
        stdout_console().print(status_table(job, datetime.now(UTC)))
    else:
        write(job.to_dict(), output)
    _save_plot(job, target)
    _print_log_of_failure(job, target)
    print_notice(f"logs: {target}/pods/*/log")
    raise typer.Exit(EXIT_INTERRUPTED if interrupted else exit_code(job))


def _check_machine(job: TrainingJob) -> None:
    """Check what a local run needs besides a valid manifest.

    Raises:
        ManifestError: torch is not installed, or the data or an environment variable do not exist on this machine.
    """
    from trainyard_operator.local.local_pod import env_problems  # imported late: other commands need no operator

    if problems := env_problems(job):
        raise ManifestError(problems)
    if job.spec.trainer is None:
        return
    if importlib.util.find_spec("torch") is None:
        fix = 'install the extra "trainer" from a checkout of Trainyard: uv tool install ".[cli,trainer]"'
        raise ManifestError([f"spec.trainer: the built-in trainer needs torch; {fix}"])
    if problems := missing_data(job.spec.trainer.data):
        raise ManifestError(problems)


def missing_data(data: Data) -> list[str]:
    """Return one line for each path of spec.trainer.data that does not exist on this machine; patterns are left out."""
    given = {"path": data.path, "evalPath": data.eval_path, "tokenizerFile": data.tokenizer_file}
    given["exclude.file"] = None if data.exclude is None else data.exclude.file
    for index, source in enumerate(data.sources or ()):
        given |= {f"sources[{index}].path": source.path, f"sources[{index}].evalPath": source.eval_path}
    return [
        f"spec.trainer.data.{field}: {path} does not exist on this machine; correct the path"
        for field, path in given.items()
        if path is not None and not is_url(path) and not has_magic(path) and not Path(path).exists()
    ]


def prepare_folder(folder: Path, job: TrainingJob, *, fresh: bool) -> None:
    """Create the folder of a run; with `fresh` remove the checkpoints in it, else report that the run continues.

    Raises:
        OSError: the folder cannot be created or written.
    """
    pods = folder / "pods"
    pods.mkdir(parents=True, exist_ok=True)
    if not os.access(pods, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(pods))
    if job.spec.checkpoint is None or job.spec.checkpoint.url is not None:
        return
    checkpoints = folder / "checkpoints"
    if fresh and checkpoints.exists():
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(exist_ok=True)
    if any(checkpoints.glob("step-*")):
        print_notice(f"continuing from {checkpoints}; --fresh starts from the beginning")


def _print_changes(file: Path, job: TrainingJob, folder: Path) -> None:
    """Print what differs from the run whose checkpoints are in the folder, and refuse what it cannot resume with."""
    if job.spec.trainer is None or not any((folder / "checkpoints").glob("step-*")):
        return
    try:
        record = read_record(folder)
        if record is not None:
            print_changes(record, resolve(job), stderr_console())
    except ManifestError as error:
        raise report_problems(file, error.problems) from None


async def _run(job: TrainingJob, folder: Path) -> tuple[TrainingJob, bool]:
    """Run the job until it has finished or is suspended; return it, and whether Ctrl-C interrupted it."""
    from trainyard_cli.local import local_run  # imported late: other commands need no operator

    async with local_run(job, folder) as local:
        with Display(stderr_console()) as display:
            while not local.finished:
                await local.changed.wait()
                local.changed.clear()
                display.show(local.job, local.events)
        return local.job, local.interrupted


def _print_log_of_failure(job: TrainingJob, folder: Path) -> None:
    """Print the end of the log of the pod that failed first, unless the failure says all there is to say."""
    failure = job.status.last_failure
    failed = job.status.is_true(ConditionType.FAILED)
    if not failed or failure is None or failure.pod is None or failure.reason == Reason.INVALID_CONFIG:
        return
    log = folder / "pods" / failure.pod / "log"
    try:
        lines = read_end(log).splitlines()[-LOG_LINES:]
    except OSError:  # the pod was never started
        return
    if lines:
        print_notice(f"end of {log}:")
        stderr_console().print(Text.from_ansi("\n".join(lines)), highlight=False, soft_wrap=True)


def _save_plot(job: TrainingJob, folder: Path) -> None:
    reports = read_reports(folder)
    if not reports:
        return
    target = folder / "plot.png"
    try:
        save_plot(job, reports, target)
    except OSError as error:
        print_notice(f"plot: {target} cannot be written: {error.strerror}")
    else:
        print_notice(f"plot: {target}")
