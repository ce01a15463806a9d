"""evaluate: the metrics of a folder of weights, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from trainyard_cli.commands.options import OutputFormat, local_file
from trainyard_cli.commands.weights_options import (
    DataPath,
    ManifestPath,
    ReportFolder,
    Weights,
    counting,
    mistakes_are_bad_input,
    open_data,
)
from trainyard_cli.output import Output, print_notice, stdout_console, write


def evaluate(
    weights: Weights,
    data: DataPath = None,
    manifest: ManifestPath = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=1, help="Most samples, spread over each source. [default: all]", show_default=False
        ),
    ] = None,
    harness: Annotated[
        Path | None,
        typer.Option(
            "--harness",
            help="Results of lm-evaluation-harness for the report: its --output_path, or a results_*.json.",
            show_default=False,
            callback=local_file,
        ),
    ] = None,
    report: ReportFolder = "evaluation",
    output: OutputFormat = Output.TABLE,
) -> None:
    """Score a model without training it: a checkpoint, the folder of a run, or a Hugging Face folder.

    Loss, accuracy, perplexity; for a table precision, recall and F1 of each class and their means, and the confusion
    matrix; calibration. The result is written to evaluation.json and, with plots, to evaluation.html. One process does
    it, on a GPU if there is one; a job with spec.trainer.task: evaluate uses any layout.

    Example: trainyard evaluate runs/digits --data new-digits.npz

    Exit codes: 0 done; 2 the weights or what is named does not fit; 130 interrupted.
    """
    with mistakes_are_bad_input():
        content = _content(weights, data, manifest, samples, harness)
        from trainyard_trainer.evaluation.report import to_json, write_evaluation  # imported late: it needs torch
        from trainyard_trainer.runtime.object_store import location

        page = write_evaluation(location(report), content)
    if output is Output.TABLE:
        stdout_console().print(content["data"]["samples"])
        stdout_console().print(_table(content))
    elif output is Output.JSON:
        typer.echo(to_json(content), nl=False)
    else:
        write(content, output)
    print_notice(f"report: {page}")


def _content(
    weights: str, data: str | None, manifest: Path | None, samples: int | None, harness: Path | None
) -> dict[str, Any]:
    """Return the content of evaluation.json.

    Raises:
        ValueError: the weights or what is named does not fit.
    """
    folder = open_data(weights, data, manifest, samples)
    from trainyard_trainer.data.evaluation_sets import sample_count  # imported late: it needs torch
    from trainyard_trainer.evaluation.folder import evaluate_folder
    from trainyard_trainer.evaluation.harness import read_harness
    from trainyard_trainer.evaluation.report import evaluation_content

    results = [] if harness is None else read_harness(harness)
    with counting("evaluating", sample_count(folder.evaluated)) as advance:
        scores = evaluate_folder(folder, advance)
    return evaluation_content(folder.subject(), scores, results)


def _table(content: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    values = dict(content["metrics"])
    if "calibration" in content:
        values["calibration error"] = content["calibration"]["error"]
    for name, value in values.items():
        table.add_row(name, f"{value:.4f}")
    return table
