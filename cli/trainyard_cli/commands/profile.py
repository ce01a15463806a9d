"""profile: a trace of the next steps of a running job."""

import base64
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from trainyard.protocol import constants
from trainyard.text import plural
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.errors import ClusterError
from trainyard_cli.cluster.pods import pod_of_rank
from trainyard_cli.commands.options import Context, Job, Kubeconfig, Namespace
from trainyard_cli.exit_codes import EXIT_BAD_INPUT
from trainyard_cli.output import print_notice

POLL_SECONDS = 1.0
"""Seconds between two checks for the finished trace."""
_FOLDER = f"${constants.ENV_CHECKPOINTS}/profiles"


def profile(
    name: Job,
    rank: Annotated[int, typer.Option(min=0, help="Rank to trace.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=100, help="Number of steps to trace.")] = 3,
    file: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write the trace to. [default: named after job, step and rank]",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for the trace.")] = 600,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Trace the next steps of one rank of the built-in trainer, and download the trace.

    Tracing begins after the next report (trainer.logEverySteps). The trace opens in https://ui.perfetto.dev or
    chrome://tracing. The job needs spec.checkpoint, where the trace is written first, and you need permission to run
    commands in its pods (pods/exec).

    Example: kubectl trainyard profile llama-ddp --rank 8 --steps 5
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.get_job(name)
    if job.spec.trainer is None or job.spec.checkpoint is None:
        raise ClusterError(f"{name}: a trace needs spec.trainer and spec.checkpoint", EXIT_BAD_INPUT)
    pod = pod_of_rank(job, rank)
    existing = _traces(cluster, pod, rank)
    command = ["python", "-m", constants.PROFILING_MODULE, "--rank", str(rank), "--steps", str(steps)]
    cluster.execute(pod, command)
    print_notice(f"requested a trace of {plural(steps, 'step')} from rank {rank} in pod {pod}")
    deadline = time.monotonic() + timeout
    while not (new := _traces(cluster, pod, rank) - existing):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"no trace within {timeout:.0f} s; does the job make steps? see: trainyard status {name}"
            )
        time.sleep(POLL_SECONDS)
    trace = max(new)
    target = file or Path(f"{name}-{trace}")
    content = base64.b64decode(_run_script(cluster, pod, f"base64 {_FOLDER}/{shlex.quote(trace)}"))
    try:
        target.write_bytes(content)
    except OSError as error:
        raise ClusterError(f"--output: {target}: {error.strerror}", EXIT_BAD_INPUT) from None
    typer.echo(f"trace: {target}")


def _traces(cluster: Cluster, pod: str, rank: int) -> set[str]:
    """Return the names of the rank's finished traces."""
    listing = _run_script(cluster, pod, f"ls {_FOLDER} 2>/dev/null || true")
    return {
        entry for entry in listing.split() if entry.endswith(f"-rank-{rank}.json.gz") and not entry.startswith("part-")
    }


def _run_script(cluster: Cluster, pod: str, script: str) -> str:
    return cluster.execute(pod, ["sh", "-c", script])
