"""record: how weights came to be."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainyard.text import plural
from trainyard_cli.commands.options import RunFolder, local_file, require_trainer, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import Output, print_error, stdout_console, write
from trainyard_cli.views.tables import plain_table

if TYPE_CHECKING:
    from trainyard_trainer.record.statement import Statement


def record(
    folder: RunFolder,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            help="Sign the records with this private key, a PEM file without a passphrase.",
            show_default=False,
            callback=local_file,
        ),
    ] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format of the output.")] = Output.TABLE,
) -> None:
    """Show the record of a checkpoint, an export, or of the newest checkpoint of a run; sign it with --sign.

    A record is an in-toto statement in an envelope (DSSE): the file record.intoto.json beside the weights. Signing does
    not check anything; run trainyard verify before.

    Exit codes: 0 done; 2 there is no record, or the key cannot be used.

    Example: trainyard record runs/llama --sign key.pem
    """
    require_trainer("record")
    from trainyard_trainer.record.signing import sign_record  # imported late: other commands do not need them
    from trainyard_trainer.record.statement import records_of
    from trainyard_trainer.runtime.object_store import location

    try:
        statements = records_of(location(folder))
        if sign is not None:
            statements = [sign_record(statement, sign, "--sign") for statement in statements]
    except ValueError as error:  # RecordError
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, folder, "correct the path"))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    newest = statements[-1]
    if output is not Output.TABLE:
        write({"subject": newest.subjects, "predicate": newest.predicate.to_dict(), "keys": newest.key_ids}, output)
        return
    table = plain_table("", "")
    table.show_header = False
    for name, text in _lines(newest).items():
        table.add_row(name, text)
    stdout_console().print(table)


def _lines(statement: "Statement") -> Mapping[str, str]:
    predicate, run = statement.predicate, statement.predicate.run
    data = run.data
    progress = predicate.progress
    found = {
        "folder": f"{statement.folder}, {len(statement.subjects)} files",
        "run": f"{run.id} of {run.created:%Y-%m-%d %H:%M} UTC",
        "history": f"{plural(len(run.attempts), 'attempt')}, {plural(len(run.changes), 'change')}",
        "parent": run.parent,
        "source": None if predicate.source is None else f"checkpoint of step {predicate.source.step}",
        "steps": f"{predicate.step:,}, {predicate.samples:,} samples, {predicate.tokens:,} tokens",
        "job": f"{run.config['namespace']}/{run.config['job']}, {plural(run.config['worldSize'], 'rank')}",
        "data": f"{data.samples:,} samples, {data.eval_samples:,} of them held out, fingerprint {data.fingerprint:x}",
        "image": run.image,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "device": f"{predicate.environment.device}, {predicate.environment.threads} threads",
        "checkpoints": f"{len(predicate.checkpoints)} before this one",
        "loss": None if progress is None or progress.loss is None else f"{progress.loss:.6g} in step {progress.step}",
        "evaluation": None if progress is None else _metrics(progress.metrics),
        "signed by": ", ".join(statement.key_ids) or "no key",
    }
    return {name: text for name, text in found.items() if text is not None}


def _metrics(metrics: Mapping[str, float] | None) -> str | None:
    return None if metrics is None else ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
