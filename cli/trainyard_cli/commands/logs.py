"""logs: what the pods of a job have logged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from trainyard.resource.job import TrainingJob
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError, NotFoundError
from trainyard_cli.cluster.log_streams import merge_lines
from trainyard_cli.cluster.pods import pod_of_rank
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import print_notice

PARALLEL_READS = 16
"""Logs that are read in parallel."""


def logs(
    name: Job,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Print the log of this rank's pod. [default: 0]", show_default=False)
    ] = None,
    all_pods: Annotated[
        bool, typer.Option("--all", help="Print the logs of all pods, each line after the pod's name.")
    ] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Print the log of the pod that failed last.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue with new lines until the pod ends.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Print only this number of last lines.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a rank's pod, of the pod that failed, or of all pods.

    Rank 0 reports the steps; the other ranks log warnings and errors only.

    Example: kubectl trainyard logs llama-ddp --rank 3 --tail 100
    """
    if sum((rank is not None, all_pods, failed)) > 1:
        raise ClusterError("--rank, --all and --failed exclude each other; choose one", EXIT_BAD_INPUT)
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.get_job(name)
    if all_pods:
        _print_all(cluster, name, tail, follow)
        return
    pod = _failed_pod(cluster, job) if failed else pod_of_rank(job, rank or 0)
    try:
        for line in cluster.stream_log(pod, tail=tail, follow=follow):
            typer.echo(line)
    except NotFoundError:
        problem = f"{name} has no pod {pod} (phase {job.status.phase}); see: trainyard status {name}"
        raise NotFoundError(problem) from None


def _failed_pod(cluster: Cluster, job: TrainingJob) -> str:
    failure, name = job.status.last_failure, job.metadata.name
    if failure is None:
        raise ClusterError(f"no attempt of {name} has failed", EXIT_BAD_INPUT)
    existing = {pod["metadata"]["name"] for pod in cluster.list_pods(name)}
    # The log is deleted with its pod; the job's status still has the reason.
    if failure.pod is None or failure.pod not in existing:
        pod = failure.pod or "unknown"
        print_notice(f"pod {pod} of attempt {failure.attempt} is deleted, and its log with it; from the job's status:")
        typer.echo(f"{failure.reason}: {failure.message}")
        raise typer.Exit
    return failure.pod


def _print_all(cluster: Cluster, name: str, tail: int | None, follow: bool) -> None:
    pods = [pod["metadata"]["name"] for pod in cluster.list_pods(name)]
    if not pods:
        raise NotFoundError(f"{name} has no pods; see: trainyard status {name}")

    def read(pod: str) -> Iterator[str]:
        try:
            for line in cluster.stream_log(pod, tail=tail, follow=follow):
                yield f"{pod} {line}"
        except ClusterError as error:  # a pod that has not started yet, or is deleted
            yield f"{pod} ({error})"

    if follow:
        for line in merge_lines([read(pod) for pod in pods]):
            typer.echo(line)
        return
    with ThreadPoolExecutor(PARALLEL_READS) as readers:
        for lines in readers.map(lambda pod: list(read(pod)), pods):
            for line in lines:
                typer.echo(line)
