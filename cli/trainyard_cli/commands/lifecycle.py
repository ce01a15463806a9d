"""suspend, resume, restart, scale, delete: commands that change a job."""

import sys
from typing import Annotated

import typer

from trainyard.resource.job import TrainingJob
from trainyard.text import plural
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError, NotFoundError
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace
from trainyard_cli.exit_codes import EXIT_BAD_INPUT


def suspend(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Save a checkpoint, and delete the pods.

    With spec.checkpoint the job later resumes at the step at which it was suspended; without it at the first.

    Example: kubectl trainyard suspend llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if _unfinished_job(cluster, name).spec.suspend:
        typer.echo(f"{name} is suspended already")
        return
    cluster.patch_spec(name, {"suspend": True})
    typer.echo(f"{name} is being suspended")


def resume(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Start a suspended TrainingJob again.

    Example: kubectl trainyard resume llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if not _unfinished_job(cluster, name).spec.suspend:
        typer.echo(f"{name} is not suspended")
        return
    cluster.patch_spec(name, {"suspend": False})
    typer.echo(f"{name} is being resumed")


def restart(name: Job, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Restart all workers as a new attempt with new pods, from the last checkpoint.

    The command deletes the pods, which save a checkpoint first, and the operator creates new ones. This does not count
    towards restartPolicy.maxRestarts.

    Example: kubectl trainyard restart llama-ddp
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = _unfinished_job(cluster, name)
    if job.spec.suspend:
        raise ClusterError(f"{name} is suspended; start it with: trainyard resume {name}", EXIT_BAD_INPUT)
    pods = [pod for pod in cluster.list_pods(name) if "deletionTimestamp" not in pod["metadata"]]
    if not pods:
        raise ClusterError(f"{name} has no pods, so there is nothing to restart; see: trainyard status {name}")
    deleted = 0
    for pod in pods:
        try:
            cluster.delete_pod(pod)
            deleted += 1
        except NotFoundError:
            continue
    typer.echo(f"{name} restarts: deleting {plural(deleted, 'pod')} of attempt {job.status.attempt}")


def scale(
    name: Job,
    replicas: Annotated[int, typer.Argument(min=1, help="Number of workers.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Change the number of workers; the job restarts at the new size, from its last checkpoint.

    Example: kubectl trainyard scale llama-ddp 4
    """
    cluster = Cluster(kubeconfig, context, namespace)
    if _unfinished_job(cluster, name).spec.workers.replicas == replicas:
        typer.echo(f"{name} has {plural(replicas, 'worker')} already")
        return
    cluster.scale_job(name, replicas)
    typer.echo(f"{name} is being scaled to {plural(replicas, 'worker')}")


def delete(
    name: Job,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Delete without asking for confirmation.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a TrainingJob with its pods, and with its checkpoints unless checkpoint.claim.retain is true.

    Example: kubectl trainyard delete llama-ddp --yes
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.get_job(name)
    claim = job.spec.checkpoint.claim if job.spec.checkpoint else None
    included = " and its checkpoints" if claim is not None and not claim.retain else ""
    if not yes:
        if not sys.stdin.isatty():
            problem = f"delete {name}{included}? standard input is not a terminal; pass --yes to confirm"
            raise ClusterError(problem, EXIT_BAD_INPUT)
        typer.confirm(f"delete {cluster.namespace}/{name}{included}?", abort=True)
    cluster.delete_job(name, job.metadata.uid)
    typer.echo(f"{name} is deleted")


def _unfinished_job(cluster: Cluster, name: str) -> TrainingJob:
    """Return a job that has not finished.

    Raises:
        ClusterError: it has finished, so a change would have no effect.
    """
    job = cluster.get_job(name)
    if job.status.finished:
        problem = f"{name} has finished ({job.status.phase}) and cannot be changed; delete it and create it again"
        raise ClusterError(problem, EXIT_BAD_INPUT)
    return job
