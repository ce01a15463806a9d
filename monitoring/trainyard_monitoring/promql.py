"""Parts of PromQL expressions that several rules and panels share."""

from typing import Final

JOB: Final = "namespace, job_name"
"""The labels that make a TrainingJob."""
RUN: Final = "model, mesh, device, world_size"
"""Labels of `trainyard_run_info` within which figures can be compared: another layout or size is another run."""

ON_JOB: Final = f"on ({JOB})"

CONDITION: Final = "job:trainyard_job_condition:last"

RUNNING: Final = f'and {ON_JOB} {CONDITION}{{condition="Running"}} == 1'
STEPPING: Final = f'and {ON_JOB} {CONDITION}{{condition="Progressing"}} == 1'
"""The current attempt has made a step of its own: the job neither waits, nor starts, nor restarts, nor rests."""
NOT_OVER: Final = f'unless {ON_JOB} {CONDITION}{{condition=~"Succeeded|Failed|Suspended"}} == 1'


def per_job(expression: str, operation: str = "max", *extra: str) -> str:
    """One series for each job (and each value of the labels in `extra`), whatever pod it comes from."""
    return f"{operation} by ({', '.join((JOB, *extra))}) ({expression})"


def increase(metric: str, window: str) -> str:
    """By how much a worker's counter has grown in a window, over all pods that the job has had in it.

    The inner maximum counts a pod that is scraped twice (by annotation, and by a PodMonitor) once.
    """
    return per_job(per_job(f"increase({metric}[{window}])", "max", "pod"), "sum")
