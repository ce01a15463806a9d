"""Values of a job as text: durations, throughput, the progress line."""

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType


def duration(seconds: float) -> str:
    """Return a duration in at most two units, as kubectl writes ages: "1h2m"."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(part for part in parts[:2] if not part.startswith("0") or len(parts) == 1)


def throughput_unit(job: TrainingJob) -> str:
    """Return the unit of the job's throughput: samples/s for table data, which has no tokens, else tokens/s.

    A program of the user's own that reports samples but no tokens has samples/s, too.
    """
    if job.spec.trainer is not None:
        return "samples/s" if job.spec.trainer.data.source == "table" else "tokens/s"
    progress = job.status.progress
    samples_only = progress is not None and progress.tokens_per_second is None and progress.samples_per_second
    return "samples/s" if samples_only else "tokens/s"


def throughput(job: TrainingJob) -> str | None:
    """Return the throughput with its unit, as in "17,000 tokens/s", or None if it is not known."""
    progress = job.status.progress
    unit = throughput_unit(job)
    if progress is None:
        return None
    value = progress.samples_per_second if unit == "samples/s" else progress.tokens_per_second
    return None if value is None else f"{value:,.0f} {unit}"


def progress_line(job: TrainingJob) -> str:
    """Return step, loss, throughput and remaining time, or what the job is waiting for."""
    status = job.status
    progress = status.progress
    # Progress of an earlier attempt says nothing about this one.
    if progress is None or progress.attempt != status.attempt:
        waiting = status.condition(ConditionType.PROGRESSING) or status.condition(ConditionType.RUNNING)
        return waiting.message if waiting and not status.finished else ""
    parts = [f"step {progress.step}" + (f"/{progress.total_steps}" if progress.total_steps else "")]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if (speed := throughput(job)) is not None:
        parts.append(speed)
    if progress.eta_seconds and not status.finished:
        parts.append(f"ETA {duration(progress.eta_seconds)}")
    return "  ".join(parts)
