"""submit: create a job, and see it to its end."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trainyard.manifest import ManifestError, parse_manifest
from trainyard.protocol import constants
from trainyard_cli.cluster.client import Body, Cluster, parse
from trainyard_cli.cluster.look import EVERY
from trainyard_cli.cluster.options import Context, Form, Kubeconfig, Namespace, reports_problems, say
from trainyard_cli.cluster.patience import Patience
from trainyard_cli.cluster.problems import ClusterProblem, Missing, Unavailable
from trainyard_cli.cluster.tables import utc_now
from trainyard_cli.display import Display
from trainyard_cli.ending import EXIT_INTERRUPTED, exit_code
from trainyard_cli.manifest import read_manifest, refuse
from trainyard_cli.output import Output, screen, write
from trainyard_cli.report import status_table
from trainyard_operator.lifecycle.status_builder import Event


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="On a cluster")(reports_problems(submit))


def submit(
    file: Annotated[Path, typer.Argument(help="Manifest of a TrainingJob (YAML or JSON); - for standard input.")],
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Follow the job to its end.")] = False,
    output: Form = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Create a TrainingJob on the cluster.

    Exit codes with --watch: 0 the job succeeded; 1 it failed; 2 it was refused, or can never work; 130 interrupted:
    the job goes on. Otherwise 0 once it is created.

    Example: kubectl trainyard submit job.yaml --watch
    """
    try:
        body = parse_manifest(read_manifest(file))
    except ManifestError as error:
        raise refuse(Console(stderr=True), file, error.problems) from None
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        raise refuse(Console(stderr=True), file, ["metadata.name: is missing; give the job a name"])
    cluster = Cluster(kubeconfig, context, namespace or metadata.get("namespace"))
    if metadata.get("namespace", cluster.namespace) != cluster.namespace:
        problem = f"metadata.namespace: is {metadata['namespace']}, and --namespace is {namespace}; make them the same"
        raise refuse(Console(stderr=True), file, [problem])
    created = cluster.create(body)
    name = created["metadata"]["name"]
    say(f"{constants.PLURAL}.{constants.GROUP}/{name} created in namespace {cluster.namespace}")
    if not watch:
        if output is not Output.TABLE:
            write(created, output)
        return
    try:
        body = follow(cluster, name, created["metadata"]["uid"])
    except Unavailable as problem:
        raise Unavailable(f"{problem}; {name} was not seen to its end: trainyard status {name}", problem.code) from None
    except KeyboardInterrupt:
        say(f"{name} goes on; see: trainyard status {name}, or end it: trainyard delete {name}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    job = parse(body)
    if output is Output.TABLE:
        screen().print(status_table(job, utc_now()))
    else:
        write(body, output)
    raise typer.Exit(exit_code(job))


def follow(cluster: Cluster, name: str, uid: str) -> Body:
    """Show a job on standard error until it has ended; returns it then."""
    told: dict[str, Event] = {}
    patience = Patience()
    with Display(Console(stderr=True)) as display:
        while True:
            seen = patience.ask(lambda: _look(cluster, name, uid))
            if seen is not None:
                body, events = seen
                for event in events:
                    told.setdefault(event["metadata"]["uid"], _event(event))
                job = parse(body)
                display.show(job, list(told.values()))
                if job.status.finished:
                    return body
            time.sleep(EVERY)


def _look(cluster: Cluster, name: str, uid: str) -> tuple[Body, list[Body]]:
    """The job with that UID, and its events."""
    try:
        body = cluster.body(name)
    except Missing:
        raise ClusterProblem(f"{name} was deleted before it had ended") from None
    if body["metadata"]["uid"] != uid:
        raise ClusterProblem(f"{name} was deleted before it had ended, and another job has its name now")
    return body, cluster.events(uid)


def _event(body: dict[str, Any]) -> Event:
    return Event("Warning" if body["type"] == "Warning" else "Normal", body["reason"], body["message"])
