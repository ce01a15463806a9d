"""profile: a trace of the next steps of a running job."""

import base64
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from trainyard.protocol import constants
from trainyard_cli.cluster.client import Cluster
from trainyard_cli.cluster.logs import pod_of_rank
from trainyard_cli.cluster.options import Context, Job, Kubeconfig, Namespace, reports_problems, say
from trainyard_cli.cluster.problems import ClusterProblem
from trainyard_cli.ending import EXIT_BAD_INPUT

EVERY = 1.0
_FOLDER = f"${constants.ENV_CHECKPOINTS}/profiles"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel="On a cluster")(reports_problems(profile))


def profile(
    name: Job,
    rank: Annotated[int, typer.Option(min=0, help="Rank to trace.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=100, help="Steps to trace.")] = 3,
    file: Annotated[Path | None, typer.Option("-o", "--output", help="[default: JOB-STEP-rank-RANK.json.gz]")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for the trace.")] = 600,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Trace the next steps of one rank of the built-in trainer, and fetch the trace.

    It begins after the next report (trainer.logEverySteps), and opens in https://ui.perfetto.dev or chrome://tracing.
    It needs spec.checkpoint, where the trace is written first, and permission to run commands in pods.

    Example: kubectl trainyard profile llama-ddp --rank 8 --steps 5
    """
    cluster = Cluster(kubeconfig, context, namespace)
    job = cluster.job(name)
    if job.spec.trainer is None or job.spec.checkpoint is None:
        raise ClusterProblem(f"{name}: traces need spec.trainer and spec.checkpoint", EXIT_BAD_INPUT)
    pod = pod_of_rank(job, rank)
    before = _traces(cluster, pod, rank)
    ask = ["python", "-m", "trainyard_trainer.metrics.profiling", "--rank", str(rank), "--steps", str(steps)]
    cluster.execute(pod, ask)
    say(f"asked rank {rank} in pod {pod} for a trace of {steps} steps")
    end = time.monotonic() + patience
    while not (new := _traces(cluster, pod, rank) - before):
        if time.monotonic() > end:
            raise ClusterProblem(f"no trace within {patience:.0f} s; does the job make steps? trainyard status {name}")
        time.sleep(EVERY)
    trace = max(new)
    target = file or Path(f"{name}-{trace}")
    content = base64.b64decode(_run(cluster, pod, f"base64 {_FOLDER}/{shlex.quote(trace)}"))
    try:
        target.write_bytes(content)
    except OSError as error:
        raise ClusterProblem(f"--output: {target}: {error.strerror}", EXIT_BAD_INPUT) from None
    typer.echo(f"trace: {target}")


def _traces(cluster: Cluster, pod: str, rank: int) -> set[str]:
    listed = _run(cluster, pod, f"ls {_FOLDER} 2>/dev/null || true")
    return {
        entry for entry in listed.split() if entry.endswith(f"-rank-{rank}.json.gz") and not entry.startswith("part-")
    }


def _run(cluster: Cluster, pod: str, script: str) -> str:
    return cluster.execute(pod, ["sh", "-c", script])
