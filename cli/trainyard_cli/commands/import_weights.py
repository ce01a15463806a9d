"""import: what a manifest says to begin with the weights of a folder."""

from typing import Annotated, Any

import typer

from trainyard_cli.commands.options import Weights, require_trainer, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED
from trainyard_cli.output import Output, print_error, print_notice, write


def import_weights(
    weights: Weights,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format of the fields.")] = Output.YAML,
) -> None:
    """Check a folder of weights, and print the fields of spec.trainer with which a job begins with them.

    With the sizes in the manifest, admission checks the layout and `trainyard plan` estimates the memory; a manifest
    may also have `model: {name, from: {path}}` alone. The path in the worker may be another one.

    Example: trainyard import models/llama-3.2-1b

    Exit codes: 0 a job can begin with the weights; 1 the storage fails; 2 there are no weights, they are damaged, or
    the model is not supported.
    """
    require_trainer("import")
    from trainyard_trainer.runtime.object_store import location
    from trainyard_trainer.weights.describe import describe  # imported late: other commands need no trainer
    from trainyard_trainer.weights.folder import open_weights

    try:
        found = open_weights(location(weights))
        found.check()
    except ValueError as error:  # WeightsError, ConfigError
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, weights, "correct the path"))
        raise typer.Exit(EXIT_FAILED) from None
    fields: dict[str, Any] = describe(found)
    count = sum(_count(shape) for shape in found.shapes().values())
    print_notice(f"{found.path}: a {found.family} with {count:,} parameters, complete")
    write(fields, Output.YAML if output is Output.TABLE else output)


def _count(shape: tuple[int, ...]) -> int:
    """Return the number of scalars of a tensor."""
    count = 1
    for size in shape:
        count *= size
    return count
