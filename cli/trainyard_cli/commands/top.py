"""top: a live view of all jobs, or of the ranks of one."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from trainyard.text import plural
from trainyard.time import utc_now
from trainyard_cli.cluster.client import Cluster, parse_job
from trainyard_cli.cluster.errors import UnavailableError
from trainyard_cli.cluster.ranks import read_ranks
from trainyard_cli.commands.options import AllNamespaces, Context, Job, Kubeconfig, Namespace
from trainyard_cli.output import stdout_console
from trainyard_cli.views import tables
from trainyard_cli.views.ranks import job_screen


def top(
    name: Job = "",
    once: Annotated[bool, typer.Option("--once", help="Print the view once and exit.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two updates.")] = 2.0,
    all_namespaces: AllNamespaces = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Watch all TrainingJobs, or the ranks of one: last step, speed, memory, stragglers. q or Ctrl-C ends it.

    The metrics of ranks are read from the pods through the API server.

    Example: kubectl trainyard top llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)

    def render() -> RenderableType:
        return _render_ranks(cluster, name) if name else _render_jobs(cluster, all_namespaces)

    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        stdout_console().print(render())
        return
    view = render()
    with (
        suppress(KeyboardInterrupt),
        _single_keys() as pressed,
        Live(view, console=stdout_console(), screen=True, auto_refresh=False) as live,
    ):
        while not pressed("q", every):
            try:
                view = render()
                live.update(view, refresh=True)
            except UnavailableError as error:  # an API server that restarts: keep the last view
                live.update(Group(Text(str(error), style="red"), view), refresh=True)


@contextmanager
def _single_keys() -> Iterator[Callable[[str, float], bool]]:
    """Read keys without Enter; the yielded function waits some seconds for a key, and returns whether it came."""
    terminal = sys.stdin.fileno()
    original = termios.tcgetattr(terminal)

    def pressed(key: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([terminal], [], [], left)
            if ready and key.encode() in os.read(terminal, 64):
                return True
        return False

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, original)


def _render_jobs(cluster: Cluster, all_namespaces: bool) -> RenderableType:
    bodies = cluster.list_bodies(all_namespaces=all_namespaces)
    now = utc_now()
    place = "all namespaces" if all_namespaces else f"namespace {cluster.namespace}"
    head = Text(f"{plural(len(bodies), 'TrainingJob')} in {place}   {now:%H:%M:%S} UTC   q: quit\n", style="dim")
    jobs = [parse_job(body) for body in bodies]
    return Group(head, tables.job_table(bodies, jobs, now, all_namespaces=all_namespaces))


def _render_ranks(cluster: Cluster, name: str) -> RenderableType:
    job = cluster.get_job(name)
    return Group(*job_screen(job, read_ranks(cluster, job), time.time()))
