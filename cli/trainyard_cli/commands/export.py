"""export: weights for other programs."""

from typing import Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from trainyard.resource.export import Dtype, Format
from trainyard_cli.commands.options import Weights, folder_or_url, require_trainer, storage_problem
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED
from trainyard_cli.output import print_error, progress_bar, stdout_console


def export(
    weights: Weights,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder to write, or its URL; it must be empty or absent.",
            show_default=False,
            callback=folder_or_url,
        ),
    ],
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Data type of the tensors; bfloat16 halves the size, and rounds them.")
    ] = "float32",
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="huggingface: the complete model, adapters merged into it. peft: the adapters of a run alone, for "
            "PeftModel.from_pretrained.",
        ),
    ] = "huggingface",
) -> None:
    """Write weights as a Hugging Face folder, which transformers and other programs load.

    It has config.json, files of safetensors, the tokenizer, and a model card with the figures of the run; of an mlp
    also model.pt2, a program for torch.export.load. One file of tensors is held in memory at a time. Checksums of a
    checkpoint are compared before.

    Example: trainyard export runs/my-job/checkpoints my-model

    Exit codes: 0 the folder is complete; 1 it could not be written; 2 there are no weights, or they are damaged; 130
    interrupted.
    """
    require_trainer("export")
    from trainyard_trainer.runtime.object_store import location
    from trainyard_trainer.weights.adapter_export import export_adapters
    from trainyard_trainer.weights.export import export as write  # imported late: other commands need no trainer
    from trainyard_trainer.weights.folder import open_weights

    target = location(folder)
    columns = (TextColumn("exporting"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    try:
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise ValueError(f"FOLDER: {folder} is not empty; choose another one, or remove it")
        with progress_bar(*columns) as progress:
            task = progress.add_task("", total=None)
            found = open_weights(location(weights))
            if form == "peft":
                export_adapters(found, target)
            else:
                write(found, target, dtype, lambda done, total: progress.update(task, completed=done, total=total))
    except ValueError as error:  # WeightsError, ConfigError
        print_error(str(error))
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except OSError as error:
        print_error(storage_problem(error, folder, "free space, or choose another folder"))
        raise typer.Exit(EXIT_FAILED) from None
    stdout_console().print(f"{found.path} is exported to {folder}", highlight=False, soft_wrap=True)
