"""plot: loss and throughput of a job."""

from pathlib import Path
from typing import Annotated

import typer

from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError, NotFoundError
from trainyard_cli.cluster.pods import pod_of_rank
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import print_notice
from trainyard_cli.views.plot import draw_plot, save_plot
from trainyard_cli.views.step_reports import parse_reports


def plot(
    name: Job,
    file: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Draw into this file (.png, .svg or .pdf) instead of the terminal."),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Draw loss and throughput of a TrainingJob, from the log of rank 0.

    Reports of a pod that has been replaced are not included; the dashboards in Grafana have them.

    Example: kubectl trainyard plot llama-ddp -o loss.svg
    """
    if file is not None and file.suffix not in (".png", ".svg", ".pdf"):
        raise ClusterError(f"--output: {file} must end in .png, .svg or .pdf", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.get_job(name)
    pod = pod_of_rank(job, 0)
    try:
        reports = list(parse_reports(cluster.stream_log(pod)))
    except NotFoundError:
        raise NotFoundError(f"{name} has no pod {pod} (phase {job.status.phase})") from None
    if not reports:
        raise ClusterError(f"{name} has not reported a step yet; see: trainyard status {name}")
    if file is not None:
        try:
            save_plot(job, reports, file)
        except OSError as error:
            raise ClusterError(f"--output: {file}: {error.strerror}", EXIT_BAD_INPUT) from None
        typer.echo(f"plot: {file}")
    else:
        draw_plot(job, reports)
    first = min(report.attempt for report in reports)
    if first > 1:
        print_notice(f"attempts before {first} are not included: their pods are deleted, and their logs with them")
