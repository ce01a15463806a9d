"""explain: which inputs decide about the predictions of a folder of weights, on this machine."""

from typing import Annotated, Any

import typer

from trainyard.resource.insight import Explain
from trainyard_cli.commands.weights_options import (
    DataPath,
    ManifestPath,
    ReportFolder,
    Weights,
    counting,
    mistakes_are_bad_input,
    needs_torch,
    open_data,
)
from trainyard_cli.output import print_notice, stdout_console


def explain(
    weights: Weights,
    data: DataPath = None,
    manifest: ManifestPath = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="Text whose next token is explained, instead of samples; repeatable.", show_default=False
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            max=1000,
            help="Samples that are explained. [default: 200 rows of a table, 8 texts]",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=2, max=4096, help="Tokens of a sample that the explained one follows.")
    ] = Explain().tokens,
    image_width: Annotated[
        int | None,
        typer.Option(
            "--image-width",
            min=1,
            help="Columns in a row of an image, if the rows of a table are images. [default: 8 for the digits]",
            show_default=False,
        ),
    ] = None,
    report: ReportFolder = "explanation",
) -> None:
    """Explain predictions of a model: a checkpoint, the folder of a run, or a Hugging Face folder.

    Integrated gradients say how much each input has moved the prediction: each column of a table (mlp), with feature
    ablation beside them, or each token of a text (llama, Qwen 3). The result is written to explanation.html, with
    pictures, and to explanation.json.

    Example: trainyard explain models/small --text "def main("

    Exit codes: 0 done; 2 the weights or what is named does not fit; 130 interrupted.
    """
    spec = Explain(samples=samples, tokens=tokens, image_width=image_width)
    with mistakes_are_bad_input():
        if text and (data is not None or manifest is not None):
            raise ValueError("--text: replaces samples of data; remove it, or --data and --manifest")
        needs_torch()
        from trainyard_trainer.explanation.folder import explain_folder, explain_texts  # imported late: torch, captum
        from trainyard_trainer.explanation.report import write_explanation
        from trainyard_trainer.explanation.samples import sample_count
        from trainyard_trainer.runtime.object_store import location

        if text:
            with counting("explaining", len(text)) as advance:
                subject, content = explain_texts(location(weights), text, advance)
            _print_predictions(text, content)
        else:
            folder = open_data(weights, data, manifest, None)
            with counting("explaining", sample_count(spec, folder.samples)) as advance:
                subject, content = folder.subject(), explain_folder(folder, spec, advance)
        page = write_explanation(location(report), subject, content)
    print_notice(f"report: {page}")


def _print_predictions(texts: list[str], content: dict[str, Any]) -> None:
    """Print the most probable next tokens of each text."""
    for text, explained in zip(texts, content["texts"], strict=True):
        tokens = [f"{token['text']!r} {token['probability']:.1%}" for token in explained["alternatives"]]
        stdout_console().print(f"{text!r} is followed by {', '.join(tokens)}", highlight=False, soft_wrap=True)
