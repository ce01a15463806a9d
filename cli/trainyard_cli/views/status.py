"""The status of a job as a table."""

from datetime import datetime

from rich.table import Table

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase
from trainyard.text import plural
from trainyard_cli.views.formatting import duration, throughput


def status_table(job: TrainingJob, now: datetime) -> Table:
    """Return the status as rows of name and value."""
    status = job.status
    table = Table(
        title=f"TrainingJob {job.metadata.namespace}/{job.metadata.name}", show_header=False, title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("phase", status.phase or Phase.PENDING)
    current = job.effective_job.spec
    reduced = f" (of {job.spec.workers.replicas})" if current.workers.replicas < job.spec.workers.replicas else ""
    ranks = f"{current.procs_per_worker} {'rank' if current.procs_per_worker == 1 else 'ranks'}"
    table.add_row("workers", f"{current.workers.replicas}{reduced} x {ranks}")
    if status.avoided_nodes:
        table.add_row("avoided nodes", ", ".join(status.avoided_nodes))
    _add_progress(table, job)
    table.add_row("attempts", f"{status.attempt} ({plural(status.restarts, 'restart')})")
    if status.start_time:
        table.add_row("time", duration((_end_time(job, now) - status.start_time).total_seconds()))
    _add_goodput(table, job)
    if failure := status.last_failure:
        table.add_row("last failure", f"{failure.pod or 'all pods'}: {failure.reason}: {failure.message}")
    return table


def _add_progress(table: Table, job: TrainingJob) -> None:
    progress = job.status.progress
    if progress is None:
        return
    table.add_row("step", f"{progress.step}" + (f" of {progress.total_steps}" if progress.total_steps else ""))
    for name, value, form in (("loss", progress.loss, ".4f"), ("learning rate", progress.learning_rate, ".3g")):
        if value is not None:
            table.add_row(name, format(value, form))
    if progress.epsilon is not None:
        table.add_row("epsilon spent", f"{progress.epsilon:.4g}{_budget(job)}")
    if (speed := throughput(job)) is not None:
        table.add_row("throughput", speed)
    if progress.mfu is not None:
        table.add_row("MFU", f"{progress.mfu:.1%}")
    if progress.eta_seconds and not job.status.finished:
        table.add_row("ETA", duration(progress.eta_seconds))
    if progress.checkpoint_step is not None:
        table.add_row("checkpoint", f"step {progress.checkpoint_step}")
    for name, value in (progress.metrics or {}).items():
        table.add_row(f"evaluation {name}", format(value, ".4f"))


def _budget(job: TrainingJob) -> str:
    """Return the limit of the privacy budget, behind what is spent of it; empty if the spec has none any more."""
    privacy = None if job.spec.trainer is None else job.spec.trainer.privacy
    return "" if privacy is None else f" of {privacy.epsilon:g} (delta {privacy.delta:g})"


def _add_goodput(table: Table, job: TrainingJob) -> None:
    goodput = job.status.goodput
    if goodput is None or goodput.ratio is None:
        return
    parts: dict[str, float] = {**goodput.parts()}
    # The row "time" of a suspended job ends with the suspension, so the current suspension does not count here either.
    if (suspended_at := _suspended_at(job)) is not None and goodput.accounted_at is not None:
        current_suspension = (goodput.accounted_at - suspended_at).total_seconds()
        parts["suspended"] = max(0.0, parts["suspended"] - current_suspension)
    others = ", ".join(f"{part} {duration(s)}" for part, s in parts.items() if round(s) and part != "productive")
    table.add_row("goodput", f"{goodput.ratio:.0%}" + (f" ({others})" if others else ""))


def _suspended_at(job: TrainingJob) -> datetime | None:
    """Return the time at which a suspended job was suspended."""
    suspended = job.status.condition(ConditionType.SUSPENDED)
    return suspended.last_transition_time if suspended and suspended.status == "True" else None


def _end_time(job: TrainingJob, now: datetime) -> datetime:
    """Return the time at which the job finished or was suspended, or `now` for an active job."""
    return _suspended_at(job) or job.status.completion_time or now
