"""What the commands for a cluster have in common: options, the end by a problem, names to complete."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.problems import ClusterProblem
from trainyard_cli.ending import EXIT_INTERRUPTED
from trainyard_cli.output import Output

P = ParamSpec("P")


def reports_problems(command: Callable[P, None]) -> Callable[P, None]:
    """End a command by one line on standard error and an exit code, where it ends by a `ClusterProblem`."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ClusterProblem as problem:
            say(f"[red]error[/]: {escape(str(problem))}")
            raise typer.Exit(problem.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def say(text: str) -> None:
    """Print a line on standard error, with rich's markup."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of jobs, for the shell; whatever goes wrong is no reason to print into a command line."""
    given = {name: context.params.get(name) for name in ("kubeconfig", "context", "namespace")}
    try:
        bodies = Cluster(**given).bodies()
    except ClusterProblem:
        return []
    return [body["metadata"]["name"] for body in bodies if body["metadata"]["name"].startswith(incomplete)]


Job = Annotated[str, typer.Argument(metavar="JOB", help="Name of the TrainingJob.", autocompletion=_names)]
Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="Path of the kubeconfig. [default: as kubectl has it]", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option("--context", help="Context of the kubeconfig. [default: the current one]", show_default=False),
]
Namespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", help="Namespace. [default: that of the context]", show_default=False),
]
Form = Annotated[Output, typer.Option("-o", "--output", help="Form of the output.")]
