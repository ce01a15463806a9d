"""Options that several commands share, and how commands on a cluster report errors."""

import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from trainyard.resource.urls import URL_PATTERN, is_url
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from trainyard_cli.output import Output, print_error

P = ParamSpec("P")


def exits_on_error(command: Callable[P, None]) -> Callable[P, None]:
    """Return the command wrapped so that a `ClusterError` ends it with one line and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ClusterError as error:
            print_error(str(error))
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def _complete_job(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of jobs for shell completion; none on an error, which must not print into a command line."""
    given = {name: context.params.get(name) for name in ("kubeconfig", "context", "namespace")}
    try:
        bodies = Cluster(**given).list_bodies()
    except ClusterError:
        return []
    return [body["metadata"]["name"] for body in bodies if body["metadata"]["name"].startswith(incomplete)]


def folder_or_url(value: str | None) -> str | None:
    """Return the name of a folder, of this machine or in an object store; None if none is given.

    Raises:
        typer.BadParameter: it is another URL, or one with credentials.
    """
    if value is not None and is_url(value) and re.match(URL_PATTERN, value) is None:
        raise typer.BadParameter(
            f"{value} is neither s3://BUCKET/NAME, gs://BUCKET/NAME nor az://CONTAINER/NAME; correct the URL, and give "
            "credentials through the environment"
        )
    return value


def local_file(value: Path | None) -> Path | None:
    """Return the path of a file that has to be on this machine.

    Raises:
        typer.BadParameter: it is a URL.
    """
    # A path has lost one of the slashes.
    if value is not None and ":/" in str(value):
        raise typer.BadParameter("it cannot be a URL; download the file, and name its path")
    return value


def storage_problem(error: OSError, place: str, fix: str) -> str:
    """Return an error of the storage in one line.

    Args:
        error: the error.
        place: the folder, for an error that names none.
        fix: what to do about a folder of this machine.
    """
    name = str(error.filename or place)
    if is_url(name):
        fix = "correct the URL, or give this shell the credentials and the address of the store (docs/storage.md)"
    return f"{name}: {error.strerror or error}; {fix}"


def require_trainer(command: str) -> None:
    """End a command that needs the trainer with one line, where that is not installed."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("safetensors") is None:
        fix = 'install the extra "trainer" from a checkout of Trainyard: uv tool install ".[cli,trainer]"'
        print_error(f"trainyard {command}: needs torch and safetensors; {fix}")
        raise typer.Exit(EXIT_BAD_INPUT)


Manifest = Annotated[Path, typer.Argument(help="Manifest of a TrainingJob (YAML or JSON); - for standard input.")]
Weights = Annotated[
    str,
    typer.Argument(
        metavar="WEIGHTS",
        help="Folder of weights, or its URL (s3://, gs://, az://): a Hugging Face folder, a checkpoint (step-...), or "
        "the folder of a run, whose newest checkpoint is meant.",
        show_default=False,
        callback=folder_or_url,
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Name of the TrainingJob.", autocompletion=_complete_job)]
RunFolder = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="Folder of a run (of trainyard run, or of its checkpoints), or of one checkpoint or export; or its URL "
        "(s3://, gs://, az://).",
        callback=folder_or_url,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="Path of the kubeconfig. [default: as for kubectl]", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="Context of the kubeconfig. [default: the current one]", show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", help="Namespace. [default: that of the context]", show_default=False),
]
OutputFormat = Annotated[Output, typer.Option("-o", "--output", help="Format of the output.")]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="Show the jobs of all namespaces.")]
