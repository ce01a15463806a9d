"""plan: an estimate of what a job needs, without running it."""

from typing import Annotated

import typer
from rich.console import Console

from trainyard.admission import load_manifest
from trainyard.estimate import estimate
from trainyard.manifest import ManifestError
from trainyard_cli.commands.options import Manifest
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import Output, write
from trainyard_cli.views.estimate import print_estimate


def plan(
    file: Manifest,
    output: Annotated[Output, typer.Option("-o", "--output", help="Format of the estimate.")] = Output.TABLE,
) -> None:
    """Estimate what a TrainingJob needs, without running it: ranks, memory, computation and communication.

    It needs neither torch nor a cluster. The estimate of memory is within about 10 % of what a worker needs.

    Exit codes: 0 the job would be admitted, and fits as far as its memory is given; 2 it would be refused.
    """
    try:
        result = estimate(load_manifest(read_manifest(file), memory=False))
    except ManifestError as error:
        raise report_problems(file, error.problems) from None
    if output is Output.TABLE:
        print_estimate(result, Console())
    else:
        write(result.to_dict(), output)
    if result.problems:
        raise report_problems(file, result.problems)
