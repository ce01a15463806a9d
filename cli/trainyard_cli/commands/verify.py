"""verify: whether weights are what their record says."""

from pathlib import Path
from typing import Annotated

import typer

from trainyard.admission import load_manifest
from trainyard.manifest import ManifestError
from trainyard.resolve import resolve
from trainyard_cli.commands.options import RunFolder, local_file, require_trainer, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import print_error, stdout_console, step_progress


def verify(
    folder: RunFolder,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            help="Public key, a PEM file: every record must be signed with it.",
            show_default=False,
            callback=local_file,
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="Manifest of the TrainingJob that the record must be of.",
            show_default=False,
            callback=local_file,
        ),
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="Check the data, too: documents are tokenized again.")] = False,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="A..B",
            help="Compute the steps after A to B again, from the checkpoint of step A (0: the initial values).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check a checkpoint, an export, or all checkpoints of a run against their records.

    Always: every file has the digest of the record, and no file was added or removed; records, manifests and run.json
    agree. --steps computes losses and weights again, in this process whatever the layout of the run was: bit by bit
    equal in the environment of the run, elsewhere up to rounding.

    Without --key a record that was replaced as a whole is not noticed. --data and --steps import spec.trainer.module of
    the record, if it has one.

    Exit codes: 0 all is as recorded; 1 something is not; 2 it cannot be checked; 130 interrupted.

    Example: trainyard verify runs/llama --key public.pem --steps 100..200
    """
    require_trainer("verify")
    from trainyard_trainer.record import signing, statement  # imported late: other commands need no torch
    from trainyard_trainer.replay import verify as checks
    from trainyard_trainer.replay.verify_steps import verify_steps
    from trainyard_trainer.runtime.object_store import location

    where = location(folder)

    def say(line: str) -> None:
        stdout_console().print(line, highlight=False, soft_wrap=True)

    try:
        span = None if steps is None else _span(steps)
        records = statement.records_of(where)
        checks.verify_files(records, say)
        signing.verify_signatures(records, key, say)
        checks.verify_history(records, say)
        if manifest is not None:
            checks.verify_config(records, resolve(load_manifest(read_manifest(manifest))), say)
        if data:
            checks.verify_data(where, say)
        if span is not None:
            with step_progress() as report:
                verify_steps(where, *span, say, report=report)
    except ManifestError as error:
        raise report_problems(manifest or Path(folder), error.problems) from None
    except statement.VerificationFailed as error:
        print_error(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except ValueError as error:  # RecordError, ReplayError, ConfigError
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, folder, "correct the path"))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    say("verified")


def _span(steps: str) -> tuple[int, int]:
    """Return the two numbers of A..B."""
    first, _, last = steps.partition("..")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError(f"--steps: {steps} must be two steps as in 100..200; correct it")
    return int(first), int(last)
