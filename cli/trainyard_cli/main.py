"""`trainyard`, also as a plugin of kubectl: run a TrainingJob on this machine, or look after those of a cluster.

The commands for a cluster are in `cluster/`.
"""

import asyncio
import importlib.util
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainyard.admission import load_manifest
from trainyard.estimate import estimate
from trainyard.manifest import ManifestError
from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster import change, logs, look, submit, top, trace
from trainyard_cli.display import Display
from trainyard_cli.ending import EXIT_INTERRUPTED, exit_code
from trainyard_cli.manifest import read_manifest, refuse
from trainyard_cli.output import Output, screen, write
from trainyard_cli.plan import show as show_plan
from trainyard_cli.report import plot, read_reports, status_table

app = typer.Typer(
    help="Train large models with one resource: TrainingJob.",
    epilog="Exit codes: 0 done; 1 job or cluster failed; 2 bad input, or refused; 3 no cluster; 130 interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for part in (look, logs, top, submit, change, trace):
    part.add_to(app)

Manifest = Annotated[Path, typer.Argument(help="Manifest of a TrainingJob (YAML or JSON); - for standard input.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("trainyard"))
        raise typer.Exit


@app.callback()
def trainyard(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train large models with one resource: TrainingJob."""


@app.command()
def run(
    file: Manifest,
    output: Annotated[
        Output, typer.Option("-o", "--output", help="Form of the final job on standard output.")
    ] = Output.TABLE,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Where logs, configuration, checkpoints and plot go. A run continues from checkpoints that are there. "
            "[default: runs/NAME-TIME]",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the checkpoints in --folder first, and start from the beginning.")
    ] = False,
) -> None:
    """Run a TrainingJob on this machine, without a cluster.

    Each worker becomes a process here, under the same plan that the operator follows on a cluster: the same
    rendezvous, restarts and status. Ctrl-C suspends the job and ends all its processes.

    Exit codes: 0 the job succeeded; 1 it failed; 2 the manifest or what it names is wrong; 130 interrupted.
    """
    stderr = Console(stderr=True)
    try:
        job = load_manifest(read_manifest(file))
        _check_machine(job)
    except ManifestError as error:
        raise refuse(stderr, file, error.problems) from None
    target = folder or Path("runs") / f"{job.metadata.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _prepare(target, job, fresh, stderr)
    try:
        job, interrupted = asyncio.run(_run(job, target, stderr))
    except asyncio.CancelledError:
        stderr.print("[yellow]interrupted twice[/]: all processes were killed")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(job, output)
    _draw(job, target, stderr)
    stderr.print(f"logs: {target}/pods/*/log", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_INTERRUPTED if interrupted else exit_code(job))


@app.command("plan")
def plan_job(
    file: Manifest,
    output: Annotated[Output, typer.Option("-o", "--output", help="Form of the plan.")] = Output.TABLE,
) -> None:
    """Show what a TrainingJob would be, without running it: ranks, memory, computation and communication.

    It needs neither torch nor a cluster. Figures of memory are estimates, within about 15 %.

    Exit codes: 0 the job would be admitted, and fits as far as its memory is given; 2 it would be refused.
    """
    try:
        found = estimate(load_manifest(read_manifest(file), memory=False))
    except ManifestError as error:
        raise refuse(Console(stderr=True), file, error.problems) from None
    if output is Output.TABLE:
        show_plan(found, Console())
    else:
        write(found.to_dict(), output)
    if found.problems:
        raise refuse(Console(stderr=True), file, found.problems)


def _check_machine(job: TrainingJob) -> None:
    """What a run on this machine needs besides a good manifest."""
    if job.spec.trainer is None:
        return
    if importlib.util.find_spec("torch") is None:
        raise ManifestError(["the built-in trainer needs torch; install it: pip install 'trainyard[trainer]'"])
    path = job.spec.trainer.data.path
    if path is not None and not Path(path).exists():
        raise ManifestError([f"spec.trainer.data.path: {path} does not exist on this machine; correct the path"])


def _prepare(folder: Path, job: TrainingJob, fresh: bool, stderr: Console) -> None:
    """Make the folder of a run, and say what it continues from, or remove that."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    if job.spec.checkpoint is None or not any(checkpoints.glob("step-*")):
        return
    if fresh:
        shutil.rmtree(checkpoints)
    else:
        stderr.print(
            f"continuing from {checkpoints}; --fresh starts anew", markup=False, highlight=False, soft_wrap=True
        )


async def _run(job: TrainingJob, folder: Path, stderr: Console) -> tuple[TrainingJob, bool]:
    from trainyard_cli.local import local_run  # imported late: the other commands need no operator

    async with local_run(job, folder) as local:
        with Display(stderr) as display:
            while not local.over:
                await local.changed.wait()
                local.changed.clear()
                display.show(local.job, local.events)
        return local.job, local.interrupted


def _print(job: TrainingJob, output: Output) -> None:
    if output is Output.TABLE:
        screen().print(status_table(job, datetime.now(UTC)))
    else:
        write(job.to_dict(), output)


def _draw(job: TrainingJob, folder: Path, stderr: Console) -> None:
    reports = read_reports(folder)
    if reports:
        target = folder / "plot.png"
        plot(job, reports, target)
        stderr.print(f"plot: {target}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of `trainyard`."""
    app()


if __name__ == "__main__":
    main()
