"""suspend, resume, restart, scale, delete: what changes a job."""

import sys
from typing import Annotated

import typer

from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.options import Context, Job, Kubeconfig, Namespace, reports_problems
from trainyard_cli.cluster.problems import ClusterProblem, Missing
from trainyard_cli.ending import EXIT_BAD_INPUT


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (suspend, resume, restart, scale, delete):
        app.command(rich_help_panel="On a cluster")(reports_problems(command))


def suspend(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Save a checkpoint, and give back the pods.

    With spec.checkpoint the job goes on later at the very step; without it at the first.

    Example: kubectl trainyard suspend llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if _active(cluster, name).spec.suspend:
        typer.echo(f"{name} is suspended already")
        return
    cluster.patch(name, {"suspend": True})
    typer.echo(f"{name} is being suspended")


def resume(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Start a suspended TrainingJob again.

    Example: kubectl trainyard resume llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if not _active(cluster, name).spec.suspend:
        typer.echo(f"{name} is not suspended")
        return
    cluster.patch(name, {"suspend": False})
    typer.echo(f"{name} is being resumed")


def restart(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Restart the whole group, as a new attempt with new pods, from its last checkpoint.

    It deletes the pods, which save first, and the operator starts new ones; that spends nothing of
    restartPolicy.maxRestarts.

    Example: kubectl trainyard restart llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = _active(cluster, name)
    if job.spec.suspend:
        raise ClusterProblem(f"{name} is suspended; start it with: trainyard resume {name}", EXIT_BAD_INPUT)
    pods = [pod for pod in cluster.pods(name) if "deletionTimestamp" not in pod["metadata"]]
    if not pods:
        raise ClusterProblem(f"{name} has no pods now, so there is nothing to restart; see: trainyard status {name}")
    gone = 0
    for pod in pods:
        try:
            cluster.delete_pod(pod)
        except Missing:
            gone += 1
    typer.echo(f"{name} restarts: {len(pods) - gone} pods of attempt {job.status.attempt} are being deleted")


def scale(
    name: Job,
    replicas: Annotated[int, typer.Argument(min=1, help="Number of workers.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Change the number of workers; the group restarts at the new size, from its last checkpoint.

    Example: kubectl trainyard scale llama-ddp 4
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if _active(cluster, name).spec.workers.replicas == replicas:
        typer.echo(f"{name} has {replicas} workers already")
        return
    cluster.scale(name, replicas)
    typer.echo(f"{name} is being scaled to {replicas} workers")


def _active(cluster: Cluster, name: str) -> TrainingJob:
    """A job that has not ended: nothing that is done to one that has would have any effect."""
    job = cluster.job(name)
    if job.status.finished:
        fix = "delete it and create it anew"
        raise ClusterProblem(f"{name} has ended ({job.status.phase}), so this would do nothing; {fix}", EXIT_BAD_INPUT)
    return job


def delete(
    name: Job,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a TrainingJob and all that it owns: its pods, and its checkpoints unless checkpoint.claim.retain is true.

    Example: kubectl trainyard delete llama-ddp --yes
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.job(name)
    claim = job.spec.checkpoint.claim if job.spec.checkpoint else None
    lost = " and its checkpoints" if claim is not None and not claim.retain else ""
    if not yes:
        if not sys.stdin.isatty():
            raise ClusterProblem(f"delete {name}{lost}? there is nobody to ask; pass --yes", EXIT_BAD_INPUT)
        typer.confirm(f"delete {cluster.namespace}/{name}{lost}?", abort=True)
    cluster.delete(name, job.metadata.uid)
    typer.echo(f"{name} is deleted")
