"""explain-step: the samples of a step, and what each of them did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trainyard_cli.commands.options import RunFolder, local_file, require_trainer, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import Output, print_error, print_notice, stdout_console, step_progress, write
from trainyard_cli.views.tables import plain_table

if TYPE_CHECKING:
    from trainyard_trainer.replay.explain_step import SampleFigures, StepExplanation

SHOWN_TEXT = 60
"""Characters of a sample's text in the table."""


def explain_step(
    folder: RunFolder,
    step: Annotated[int, typer.Argument(metavar="STEP", min=1, help="Number of the step, from 1.")],
    top: Annotated[int, typer.Option("--top", min=1, max=10_000, help="Number of samples to show.")] = 10,
    exclude: Annotated[
        Path | None,
        typer.Option(
            "--exclude",
            help="Append the numbers of the samples that stand out to this file, for spec.trainer.data.exclude.file.",
            show_default=False,
            callback=local_file,
        ),
    ] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format of the output.")] = Output.TABLE,
) -> None:
    """Name the samples of a step, those that stand out by their loss or gradient first.

    The step is made again in this process from the checkpoint before it, whatever the layout of the run was; the steps
    between are made, too. Each sample then passes by itself. The data must be at the same paths as for the run.

    Exit codes: 0 done; 2 the run cannot be replayed here; 130 interrupted.

    Example: trainyard explain-step runs/llama 1200 --top 3
    """
    require_trainer("explain-step")
    from trainyard_trainer.replay import explain_step as replay  # imported late: other commands need no torch
    from trainyard_trainer.runtime.object_store import location

    try:
        with step_progress() as report:
            found = replay.explain_step(location(folder), step, top=top, report=report)
        if exclude is not None and found.outliers:
            with exclude.open("a") as file:
                file.writelines(f"{sample}\n" for sample in found.outliers)
    except ValueError as error:  # ReplayError, ConfigError, VerificationFailed
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, folder, "correct the path"))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if output is Output.TABLE:
        _print(found, top)
    else:
        write(found.to_dict(), output)


def _print(found: "StepExplanation", top: int) -> None:
    table = plain_table("SAMPLE", "LOSS", "GRADNORM", "DEVIATION", "PLACE", "TEXT")
    # On a narrow terminal these two are folded, and the figures stay readable.
    for column in table.columns[-2:]:
        column.no_wrap = False
    for figures in found.samples[:top]:
        table.add_row(str(figures.sample), *_figures(figures), *_origin(figures))
    stdout_console().print(table)
    print_notice(
        f"step {found.step} of run {found.run}: loss {_number(found.loss)}, gradient norm {_number(found.grad_norm)}, "
        f"{len(found.samples)} samples, from the state after step {found.restored_step}"
    )
    if found.outliers:
        names = ", ".join(map(str, found.outliers[:top]))
        print_notice(f"to leave out what stands out: spec.trainer.data.exclude: {{samples: [{names}]}}")
    else:
        print_notice("no sample stands out")


def _figures(figures: "SampleFigures") -> tuple[str, str, str]:
    deviation = "not finite" if figures.deviation is None else f"{figures.deviation:.1f}"
    return _number(figures.loss), _number(figures.grad_norm), deviation


def _origin(figures: "SampleFigures") -> tuple[str | Text, Text]:
    origin = figures.origin
    if origin is None:
        return "", Text("")
    more = f" and {len(origin.places) - 1} more" if len(origin.places) > 1 else ""
    text = "" if origin.text is None else repr(origin.text[:SHOWN_TEXT])
    return Text(f"{origin.places[0]}{more}" if origin.places else ""), Text(text)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
