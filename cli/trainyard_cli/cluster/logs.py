"""logs, plot: what the workers of a job have said."""

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Annotated

import typer

from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.options import Context, Job, Kubeconfig, Namespace, reports_problems, say
from trainyard_cli.cluster.problems import ClusterProblem, Missing
from trainyard_cli.ending import EXIT_BAD_INPUT
from trainyard_cli.report import StepReport, plot, reports_in

AT_A_TIME = 16
"""Logs that are read in parallel."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(rich_help_panel="On a cluster")(reports_problems(logs))
    app.command("plot", rich_help_panel="On a cluster")(reports_problems(plot_job))


def logs(
    name: Job,
    rank: Annotated[
        int | None, typer.Option(min=0, help="The pod of this rank. [default: 0]", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All pods, each line with the pod's name in front.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="The pod that brought the last attempt down.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the pod ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only so many lines, the last ones.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of the pod of a rank, of the one that failed, or of all.

    Rank 0 reports the steps; the others say only what went wrong.

    Example: kubectl trainyard logs llama-ddp --rank 3 --tail 100
    """
    if sum((rank is not None, every, failed)) > 1:
        raise ClusterProblem("--rank, --all and --failed exclude each other; choose one", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.job(name)
    if every:
        _print_all(cluster, name, tail, follow)
        return
    pod = _failed_pod(cluster, job) if failed else pod_of_rank(job, rank or 0)
    try:
        for line in cluster.log(pod, tail=tail, follow=follow):
            typer.echo(line)
    except Missing:
        raise Missing(f"{name} has no pod {pod} now (phase {job.status.phase}); see: trainyard status {name}") from None


def pod_of_rank(job: TrainingJob, rank: int) -> str:
    """Name of the pod that a rank of the current attempt is in.

    Raises:
        ClusterProblem: there is no such rank, or no attempt yet.
    """
    spec = job.effective_job.spec
    if rank >= spec.world_size + spec.servers:
        last = spec.world_size + spec.servers - 1
        raise ClusterProblem(f"--rank: {job.metadata.name} has the ranks 0 to {last}; choose one", EXIT_BAD_INPUT)
    if job.status.attempt == 0:
        raise ClusterProblem(f"{job.metadata.name} has no pods yet; see: trainyard status {job.metadata.name}")
    index = spec.workers.replicas if rank >= spec.world_size else rank // spec.procs_per_worker
    return job.effective_job.pod_name(job.status.pod_attempt, index)


def _failed_pod(cluster: Cluster, job: TrainingJob) -> str:
    failure, name = job.status.last_failure, job.metadata.name
    if failure is None:
        raise ClusterProblem(f"no attempt of {name} has failed", EXIT_BAD_INPUT)
    there = {pod["metadata"]["name"] for pod in cluster.pods(name)}
    if failure.pod is None or failure.pod not in there:
        say(f"pod {failure.pod or 'unknown'} of attempt {failure.attempt} is gone, and its log with it; what is known:")
        typer.echo(f"{failure.reason}: {failure.message}")
        raise typer.Exit
    return failure.pod


def _print_all(cluster: Cluster, name: str, tail: int | None, follow: bool) -> None:
    pods = [pod["metadata"]["name"] for pod in cluster.pods(name)]
    if not pods:
        raise Missing(f"{name} has no pods now; see: trainyard status {name}")

    def read(pod: str) -> Iterator[str]:
        try:
            for line in cluster.log(pod, tail=tail, follow=follow):
                yield f"{pod} {line}"
        except ClusterProblem as problem:  # one that has not begun yet, or is gone
            yield f"{pod} ({problem})"

    if follow:
        for line in _as_they_come([read(pod) for pod in pods]):
            typer.echo(line)
        return
    with ThreadPoolExecutor(AT_A_TIME) as readers:
        for lines in readers.map(lambda pod: list(read(pod)), pods):
            for line in lines:
                typer.echo(line)


def _as_they_come(sources: Sequence[Iterator[str]]) -> Iterator[str]:
    """Lines of all sources, until all have ended."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read(source: Iterator[str]) -> None:
        try:
            for line in source:
                lines.put(line)
        finally:
            lines.put(None)

    for source in sources:
        # Daemons: Ctrl-C need not wait until each of them has something to read.
        Thread(target=read, args=(source,), daemon=True).start()
    going = len(sources)
    while going:
        line = lines.get()
        if line is None:
            going -= 1
        else:
            yield line


def plot_job(
    name: Job,
    file: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Draw into this file (.png, .svg or .pdf) and not in the terminal."),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Draw loss and throughput of a TrainingJob, from the log of rank 0.

    What a pod has said before it was replaced is not in it; dashboards have that.

    Example: kubectl trainyard plot llama-ddp -o loss.svg
    """
    if file is not None and file.suffix not in (".png", ".svg", ".pdf"):
        raise ClusterProblem(f"--output: {file} must end in .png, .svg or .pdf", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.job(name)
    pod = pod_of_rank(job, 0)
    try:
        reports = list(reports_in(cluster.log(pod)))
    except Missing:
        raise Missing(f"{name} has no pod {pod} now (phase {job.status.phase})") from None
    if not reports:
        raise ClusterProblem(f"{name} has not reported a step yet; see: trainyard status {name}")
    if file is not None:
        try:
            plot(job, reports, file)
        except OSError as error:
            raise ClusterProblem(f"--output: {file}: {error.strerror}", EXIT_BAD_INPUT) from None
        typer.echo(f"plot: {file}")
    else:
        draw(job, reports)
    first = min(report.attempt for report in reports)
    if first > 1:
        say(f"the pods of the attempts before {first} are gone, and what they said with them")


def draw(job: TrainingJob, reports: list[StepReport]) -> None:
    """Draw into the terminal, one line for each attempt."""
    import plotext  # imported late: it is seldom used

    figure = plotext.figure
    figure.clear()
    figure.subplots(2, 1)
    for row, title, values in (
        (1, f"{job.metadata.name}: loss (nats)", [(r.attempt, r.step, r.loss) for r in reports]),
        (2, "tokens/s", [(r.attempt, r.step, r.tokens_per_second) for r in reports]),
    ):
        part = figure.subplot(row, 1)
        part.title(title)
        for attempt in sorted({r.attempt for r in reports}):
            # What is no number must not get there: it ends the whole process.
            points = [(step, value) for of, step, value in values if of == attempt and math.isfinite(value)]
            if points:
                signal = part.signal(*map(list, zip(*points, strict=True)), marker="braille")
                signal.lines()
                part.draw(signal)
    size = shutil.get_terminal_size((80, 24))
    figure.plot_size(width=size.columns, height=max(12, size.lines - 2))
    figure.show(colorless=not sys.stdout.isatty())
