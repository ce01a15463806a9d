"""The command `trainyard`: its subcommands, put together."""

from collections.abc import Callable
from typing import Annotated

import typer

from trainyard import __version__
from trainyard_cli.commands.estimate import plan
from trainyard_cli.commands.events import events
from trainyard_cli.commands.explain_step import explain_step
from trainyard_cli.commands.export import export
from trainyard_cli.commands.import_weights import import_weights
from trainyard_cli.commands.lifecycle import delete, restart, resume, scale, suspend
from trainyard_cli.commands.list import list_jobs
from trainyard_cli.commands.logs import logs
from trainyard_cli.commands.options import exits_on_error
from trainyard_cli.commands.plot import plot
from trainyard_cli.commands.prepare import prepare
from trainyard_cli.commands.profile import profile
from trainyard_cli.commands.record import record
from trainyard_cli.commands.run import run
from trainyard_cli.commands.status import status
from trainyard_cli.commands.submit import submit
from trainyard_cli.commands.top import top
from trainyard_cli.commands.verify import verify
from trainyard_cli.help import HelpCommand, HelpGroup
from trainyard_cli.streams import guard_streams

HELP = "Train large models with one resource: TrainingJob."

app = typer.Typer(
    cls=HelpGroup,
    help=HELP,
    epilog="Exit codes: 0 done; 1 job or cluster failed; 2 bad input, or refused; 3 no cluster; 130 interrupted.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LOCAL: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "prepare": prepare,
    "import": import_weights,
    "export": export,
    "explain-step": explain_step,
    "record": record,
    "verify": verify,
}
CLUSTER: dict[str, Callable[..., None]] = {
    "list": list_jobs,
    "status": status,
    "events": events,
    "logs": logs,
    "plot": plot,
    "top": top,
    "submit": submit,
    "suspend": suspend,
    "resume": resume,
    "restart": restart,
    "scale": scale,
    "delete": delete,
    "profile": profile,
}
for name, command in LOCAL.items():
    app.command(name, cls=HelpCommand)(command)
for name, command in CLUSTER.items():
    app.command(name, cls=HelpCommand, rich_help_panel="On a cluster")(exits_on_error(command))


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def trainyard(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options of the command itself."""


def main() -> None:
    """Run the command."""
    with guard_streams():
        app()


if __name__ == "__main__":
    main()
