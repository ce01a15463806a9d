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
from rich.table import Table
from rich.text import Text

from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster import tables
from trainyard_cli.cluster.client import Cluster, parse
from trainyard_cli.cluster.options import Context, Kubeconfig, Namespace, reports_problems
from trainyard_cli.cluster.options import Job as JobName
from trainyard_cli.cluster.problems import Unavailable
from trainyard_cli.cluster.ranks import JobView, RankView, look_at
from trainyard_cli.display import figures
from trainyard_cli.output import screen
from trainyard_cli.report import duration


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="On a cluster")(reports_problems(top))


def top(
    name: JobName = "",
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two pictures.")] = 2.0,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Jobs of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Watch all TrainingJobs, or the ranks of one: last step, speed, memory, stragglers. q or Ctrl-C ends it.

    Figures of ranks are read from the pods through the API server.

    Example: kubectl trainyard top llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)

    def picture() -> RenderableType:
        return _ranks(cluster, name) if name else _jobs(cluster, everywhere)

    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        screen().print(picture())
        return
    shown = picture()
    with (
        suppress(KeyboardInterrupt),
        _single_keys() as pressed,
        Live(shown, console=screen(), screen=True, auto_refresh=False) as live,
    ):
        while not pressed("q", every):
            try:
                shown = picture()
                live.update(shown, refresh=True)
            except Unavailable as problem:  # an API server that restarts comes back
                live.update(Group(Text(str(problem), style="red"), shown), refresh=True)


@contextmanager
def _single_keys() -> Iterator[Callable[[str, float], bool]]:
    """Keys without Enter. What it yields waits for one for some seconds; True: it came."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(key: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([terminal], [], [], left)
            if ready and key.encode() in os.read(terminal, 64):
                return True
        return False

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _jobs(cluster: Cluster, everywhere: bool) -> RenderableType:
    bodies = cluster.bodies(everywhere=everywhere)
    now = tables.utc_now()
    where = "all namespaces" if everywhere else f"namespace {cluster.namespace}"
    head = Text(f"{len(bodies)} TrainingJobs in {where}   {now:%H:%M:%S} UTC   q: end\n", style="dim")
    return Group(head, tables.job_table(bodies, [parse(b) for b in bodies], now, everywhere=everywhere))


def _ranks(cluster: Cluster, name: str) -> RenderableType:
    job = cluster.job(name)
    return Group(*picture_of(job, look_at(cluster, job), time.time()))


def picture_of(job: TrainingJob, view: JobView, now: float) -> Iterator[RenderableType]:
    """A job and its ranks, from top to bottom. `now`: seconds since 1970."""
    head = Text.assemble((job.metadata.name, "bold"), "  ", tables.phase_text(job), f"  attempt {job.status.attempt}  ")
    yield head.append(figures(job))
    bar = tables.progress_bar(job)
    if bar is not None:
        yield bar
    if view.phases:
        step = sum(view.phases.values())
        parts = ", ".join(f"{phase} {seconds / step:.0%}" for phase, seconds in view.phases.items() if seconds)
        yield Text(f"a step takes {step:.3f} s on rank 0: {parts}")
    if view.parts:
        alone, hidden = view.parts.get("communication", 0.0), view.parts.get("overlap", 0.0)
        yield Text(f"communication: {alone:.0%} of the step alone, {hidden:.0%} beside computation")
    yield Text()
    yield _rank_table(view.ranks, now)
    if view.problem:
        yield Text(f"not all ranks have figures: {view.problem}", style="yellow")
    if view.hidden:
        yield Text(f"and {view.hidden} pods more; Grafana shows all of them", style="dim")


def _rank_table(ranks: list[RankView], now: float) -> Table:
    table = tables.plain_table(
        "RANK", "POD", "NODE", "STATE", "LAST STEP", "COMPUTE", "SLOWER", "RSS", "GPU MEM", "GPU PEAK"
    )
    for rank in ranks:
        memory = rank.memory
        table.add_row(
            str(rank.rank),
            rank.pod,
            rank.node,
            rank.state,
            "" if rank.last_step is None else f"{duration(now - rank.last_step)} ago",
            "" if rank.compute is None else f"{rank.compute * 1000:.2f} ms",
            "" if rank.straggler is None else f"{rank.straggler:.1f} x",
            *(_size(memory.get(kind)) for kind in ("resident", "allocated", "peak")),
            style="yellow" if rank.straggler is not None else "",
        )
    return table


def _size(size: float | None) -> str:
    if size is None:
        return ""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
