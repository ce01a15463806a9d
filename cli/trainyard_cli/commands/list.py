"""list: the jobs of a namespace, or of all."""

from trainyard.time import utc_now
from trainyard_cli.cluster.client import Cluster, parse_job
from trainyard_cli.commands.options import AllNamespaces, Context, Kubeconfig, Namespace, OutputFormat
from trainyard_cli.output import Output, print_notice, stdout_console, write
from trainyard_cli.views.tables import job_table


def list_jobs(
    all_namespaces: AllNamespaces = False,
    output: OutputFormat = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List TrainingJobs: phase, step, loss, throughput, remaining time, goodput.

    Example: kubectl trainyard list -A
    """
    cluster = Cluster(kubeconfig, context, namespace)
    bodies = cluster.list_bodies(all_namespaces=all_namespaces)
    if output is not Output.TABLE:
        write({"apiVersion": "v1", "kind": "List", "items": bodies}, output)
    elif not bodies:
        print_notice("there are no TrainingJobs" + ("" if all_namespaces else f" in namespace {cluster.namespace}"))
    else:
        jobs = [parse_job(body) for body in bodies]
        stdout_console().print(job_table(bodies, jobs, utc_now(), all_namespaces=all_namespaces))
