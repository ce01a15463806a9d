"""submit: create a job, and follow it until it has finished."""

import time
from typing import Annotated, Any

import typer

from trainyard.manifest import ManifestError, parse_manifest
from trainyard.protocol import constants
from trainyard.time import utc_now
from trainyard_cli.cluster.client import Body, Cluster, parse_job
from trainyard_cli.cluster.errors import ClusterError, NotFoundError, UnavailableError
from trainyard_cli.cluster.retry import POLL_SECONDS, Retry
from trainyard_cli.commands.options import Context, Kubeconfig, Manifest, Namespace, OutputFormat
from trainyard_cli.exit_codes import EXIT_INTERRUPTED, exit_code
from trainyard_cli.manifest import read_manifest, report_problems
from trainyard_cli.output import Output, print_notice, stderr_console, stdout_console, write
from trainyard_cli.views.display import Display
from trainyard_cli.views.status import status_table
from trainyard_operator.lifecycle.status_builder import Event


def submit(
    file: Manifest,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Follow the job until it has finished.")] = False,
    output: OutputFormat = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Create a TrainingJob on the cluster.

    Exit codes with --watch: 0 the job succeeded; 1 it failed; 2 it was refused, or is invalid; 130 interrupted: the
    job continues. Without --watch: 0 once it is created.

    Example: kubectl trainyard submit job.yaml --watch
    """
    try:
        body = parse_manifest(read_manifest(file))
    except ManifestError as error:
        raise report_problems(file, error.problems) from None
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        raise report_problems(file, ["metadata.name: is missing; give the job a name"])
    cluster = Cluster(kubeconfig, context, namespace or metadata.get("namespace"))
    if metadata.get("namespace", cluster.namespace) != cluster.namespace:
        problem = f"metadata.namespace: is {metadata['namespace']}, but --namespace is {namespace}; make them equal"
        raise report_problems(file, [problem])
    created = cluster.create_job(body)
    name = created["metadata"]["name"]
    print_notice(f"{constants.PLURAL}.{constants.GROUP}/{name} created in namespace {cluster.namespace}")
    if not watch:
        if output is not Output.TABLE:
            write(created, output)
        return
    try:
        body = _follow(cluster, name, created["metadata"]["uid"])
    except UnavailableError as error:
        problem = f"{error}; {name} had not finished when it was last seen, see: trainyard status {name}"
        raise UnavailableError(problem, error.code) from None
    except KeyboardInterrupt:
        print_notice(f"{name} continues; see: trainyard status {name}, or delete it: trainyard delete {name}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    job = parse_job(body)
    if output is Output.TABLE:
        stdout_console().print(status_table(job, utc_now()))
    else:
        write(body, output)
    raise typer.Exit(exit_code(job))


def _follow(cluster: Cluster, name: str, uid: str) -> Body:
    """Show the progress of a job on standard error until it has finished; return its final body."""
    events: dict[str, Event] = {}
    retry = Retry()
    with Display(stderr_console()) as display:
        while True:
            current = retry.call(lambda: _get(cluster, name, uid))
            if current is not None:
                body, event_bodies = current
                for event in event_bodies:
                    events.setdefault(event["metadata"]["uid"], _parse_event(event))
                job = parse_job(body)
                display.show(job, list(events.values()))
                if job.status.finished:
                    return body
            time.sleep(POLL_SECONDS)


def _get(cluster: Cluster, name: str, uid: str) -> tuple[Body, list[Body]]:
    """Return the job with this UID, and its events.

    Raises:
        ClusterError: it has been deleted.
    """
    try:
        body = cluster.get_body(name)
    except NotFoundError:
        raise ClusterError(f"{name} was deleted before it finished") from None
    if body["metadata"]["uid"] != uid:
        raise ClusterError(f"{name} was deleted before it finished, and another job has its name now")
    return body, cluster.list_events(uid)


def _parse_event(body: dict[str, Any]) -> Event:
    return Event("Warning" if body["type"] == "Warning" else "Normal", body["reason"], body["message"])
