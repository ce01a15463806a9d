"""Parts of PromQL expressions that rules and panels share."""

from typing import Final

JOB: Final = "namespace, job_name"
"""Labels that identify a TrainingJob."""
RUN: Final = "model, mesh, device, world_size"
"""Labels of `trainyard_run_info` that identify comparable values: another layout or size is another run."""

ON_JOB: Final = f"on ({JOB})"

CONDITION: Final = "job:trainyard_job_condition:last"

RUNNING: Final = f'and {ON_JOB} {CONDITION}{{condition="Running"}} == 1'
STEPPING: Final = f'and {ON_JOB} {CONDITION}{{condition="Progressing"}} == 1'
"""Selects jobs whose current attempt has done a step of its own: they are not waiting, starting, restarting or
suspended."""
NOT_FINISHED: Final = f'unless {ON_JOB} {CONDITION}{{condition=~"Succeeded|Failed|Suspended"}} == 1'


def per_job(expression: str, operation: str = "max", *extra: str) -> str:
    """Aggregate an expression to one series for each job, and for each value of the labels in `extra`."""
    return f"{operation} by ({', '.join((JOB, *extra))}) ({expression})"


def increase(metric: str, window: str) -> str:
    """Return the increase of a worker's counter in a window, over all pods that the job had in it.

    The inner maximum counts a pod once that is scraped twice (by annotation and by a PodMonitor).
    """
    return per_job(per_job(f"increase({metric}[{window}])", "max", "pod"), "sum")
