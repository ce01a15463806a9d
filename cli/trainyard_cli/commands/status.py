"""status: one job in detail."""

from trainyard.time import utc_now
from trainyard_cli.cluster.client import Cluster, parse_job
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace, OutputFormat
from trainyard_cli.output import Output, stdout_console, write
from trainyard_cli.views.status import status_table
from trainyard_cli.views.tables import condition_table, progress_bar


def status(
    name: Job,
    output: OutputFormat = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the status of a TrainingJob: progress, throughput, goodput, conditions, the last failure.

    Example: kubectl trainyard status llama-ddp
    """
    body = Cluster(kubeconfig, context, namespace).get_body(name)
    if output is not Output.TABLE:
        write(body, output)
        return
    job = parse_job(body)
    console = stdout_console()
    bar = progress_bar(job)
    console.print(status_table(job, utc_now()))
    if bar is not None:
        console.print(bar)
    console.print()
    console.print(condition_table(job.status.conditions, utc_now()))
