"""events: the events of one job."""

import time
from typing import Annotated

import typer

from trainyard.time import utc_now
from trainyard_cli.cluster.client import Body, Cluster
from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.cluster.retry import POLL_SECONDS, Retry
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace, OutputFormat
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import Output, print_notice, stdout_console, write
from trainyard_cli.views.tables import event_table


def events(
    name: Job,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Continue with new events until Ctrl-C.")] = False,
    output: OutputFormat = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the events of a TrainingJob, oldest first.

    A cluster keeps events for one hour, unless it is configured otherwise.

    Example: kubectl trainyard events llama-ddp --watch
    """
    if watch and output is not Output.TABLE:
        raise ClusterError("--watch: requires -o table; leave out one of them", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    uid = cluster.get_body(name)["metadata"]["uid"]
    current = cluster.list_events(uid)
    if output is not Output.TABLE:
        write({"apiVersion": "v1", "kind": "List", "items": current}, output)
        return
    if not current and not watch:
        print_notice(f"{name} has no events; a cluster keeps them for one hour")
        return
    console = stdout_console()
    console.print(event_table(current, utc_now()))
    printed = {_version(event) for event in current}
    retry = Retry()
    while watch:
        time.sleep(POLL_SECONDS)
        new = [event for event in retry.call(lambda: cluster.list_events(uid)) or () if _version(event) not in printed]
        if new:
            table = event_table(new, utc_now())
            table.show_header = False
            console.print(table)
            printed |= {_version(event) for event in new}


def _version(event: Body) -> tuple[str, str]:
    return event["metadata"]["uid"], event["metadata"]["resourceVersion"]
