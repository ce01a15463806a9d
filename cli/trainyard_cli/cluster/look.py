"""list, status, events: what there is, and how it is doing."""

import time
from typing import Annotated

import typer

from trainyard_cli.cluster import tables
from trainyard_cli.cluster.client import Body, Cluster, parse
from trainyard_cli.cluster.options import Context, Form, Job, Kubeconfig, Namespace, reports_problems, say
from trainyard_cli.cluster.patience import Patience
from trainyard_cli.cluster.problems import ClusterProblem
from trainyard_cli.ending import EXIT_BAD_INPUT
from trainyard_cli.output import Output, screen, write
from trainyard_cli.report import status_table

EVERY = 2.0
"""Seconds between two looks of a command that watches."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("list", rich_help_panel="On a cluster")(reports_problems(list_jobs))
    app.command("status", rich_help_panel="On a cluster")(reports_problems(status))
    app.command("events", rich_help_panel="On a cluster")(reports_problems(events))


def list_jobs(
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Those of all namespaces.")] = False,
    output: Form = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List TrainingJobs: phase, step, loss, throughput, time left, goodput.

    Example: kubectl trainyard list -A
    """
    cluster = Cluster(kubeconfig, context, namespace)
    bodies = cluster.bodies(everywhere=everywhere)
    if output is not Output.TABLE:
        write({"apiVersion": "v1", "kind": "List", "items": bodies}, output)
    elif not bodies:
        say("there are no TrainingJobs" + ("" if everywhere else f" in namespace {cluster.namespace}"))
    else:
        jobs = [parse(body) for body in bodies]
        screen().print(tables.job_table(bodies, jobs, tables.utc_now(), everywhere=everywhere))


def status(
    name: Job,
    output: Form = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show how a TrainingJob is doing: progress, throughput, goodput, conditions, the last failure.

    Example: kubectl trainyard status llama-ddp
    """
    body = Cluster(kubeconfig, context, namespace).body(name)
    if output is not Output.TABLE:
        write(body, output)
        return
    job = parse(body)
    out = screen()
    bar = tables.progress_bar(job)
    out.print(status_table(job, tables.utc_now()))
    if bar is not None:
        out.print(bar)
    out.print()
    out.print(tables.condition_table(job.status.conditions, tables.utc_now()))


def events(
    name: Job,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on with those that come; Ctrl-C ends it.")] = False,
    output: Form = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the events of a TrainingJob, the oldest first.

    The cluster forgets events after an hour, unless it is told otherwise.

    Example: kubectl trainyard events llama-ddp --watch
    """
    if watch and output is not Output.TABLE:
        raise ClusterProblem("--watch: goes with -o table only; leave out one of them", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    uid = cluster.body(name)["metadata"]["uid"]
    found = cluster.events(uid)
    if output is not Output.TABLE:
        write({"apiVersion": "v1", "kind": "List", "items": found}, output)
        return
    if not found and not watch:
        say(f"there are no events about {name}; the cluster forgets them after an hour")
        return
    out = screen()
    out.print(tables.event_table(found, tables.utc_now()))
    seen = set(map(_version, found))
    patience = Patience()
    while watch:
        time.sleep(EVERY)
        new = [event for event in patience.ask(lambda: cluster.events(uid)) or () if _version(event) not in seen]
        if new:
            table = tables.event_table(new, tables.utc_now())
            table.show_header = False
            out.print(table)
            seen |= set(map(_version, new))


def _version(event: Body) -> tuple[str, str]:
    return event["metadata"]["uid"], event["metadata"]["resourceVersion"]
