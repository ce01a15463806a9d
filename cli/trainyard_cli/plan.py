"""`trainyard plan`: what a job would be, on one screen."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainyard.estimate import Axis, Estimate, TrainingEstimate, Work
from trainyard.resource.quantity import format_bytes
from trainyard.sizing.fit import Fit
from trainyard.sizing.traffic import Traffic

BAR = 32
"""Characters of the longest bar."""


def show(estimate: Estimate, console: Console) -> None:
    """Print it as tables."""
    console.print(_job(estimate))
    if estimate.training is not None:
        training = estimate.training
        console.print(_memory(training.fit))
        if training.server is not None:
            console.print(_fit(training.server))
        console.print(_communication(training.communication, whole=training.work.samples is not None))


def _job(estimate: Estimate) -> RenderableType:
    workers = estimate.workers
    table = _grid(f"TrainingJob {estimate.namespace}/{estimate.name}")
    ranks = (
        f"{workers.replicas} x {workers.procs_per_worker} ranks = {workers.ranks} ranks on {workers.device.upper()}s"
    )
    table.add_row("workers", ranks)
    if workers.limits:
        table.add_row("limits", ", ".join(f"{name} {amount}" for name, amount in workers.limits.items()))
    training = estimate.training
    if training is None:
        table.add_row("program", "your own: its mesh, memory and communication are not known")
        return table
    table.add_row("mesh", "\n".join(map(_axis, training.axes)) or "one rank")
    table.add_row("model", _parameters(training))
    for name, words in _work(training.work, workers.ranks):
        table.add_row(name, words)
    return table


def _axis(axis: Axis) -> str:
    return f"{axis.name} {axis.size}, {'across workers' if axis.crosses_workers else 'inside each worker'}"


def _parameters(training: TrainingEstimate) -> str:
    words = f"{_count(training.parameters)} parameters"
    if training.active_parameters < training.parameters:
        words += f" of which a token uses {_count(training.active_parameters)}"
    return f"{words}, {_count(training.rank_parameters)} held by a rank"


def _work(work: Work, ranks: int) -> list[tuple[str, str]]:
    if work.samples is None or work.tokens is None or work.flops is None:
        rows = [("step", f"all samples, at most {work.micro_batch} at a time on a rank")]
    else:
        samples = f"{work.samples:,} samples" + (f" = {work.tokens:,} tokens" if work.tokens != work.samples else "")
        rows = [
            ("step", f"{samples}; a rank does {work.micro_batches} x {work.micro_batch} samples"),
            ("compute", f"{_count(work.flops)} FLOPs per step, {_count(work.flops / ranks)} per rank"),
        ]
    if work.stages:
        layers = " + ".join(map(str, work.stages))
        rows.append(("pipeline", f"{layers} layers, bubble {work.bubble:.0%}"))
    return rows


def _memory(fit: Fit) -> RenderableType:
    """A bar for each part, and below them the fit."""
    table = _grid(f"Memory of a rank at its peak: {fit.memory.moment}")
    table.columns[1].justify = "right"
    table.add_column()
    parts = {**fit.memory.parts, "process": fit.process}
    largest = max(parts.values())
    for name, size in parts.items():
        table.add_row(name, format_bytes(size), Text("█" * round(BAR * size / largest), style="cyan"))
    table.add_row("total", format_bytes(sum(parts.values())), "")
    return Group(table, _fit(fit))


def _fit(fit: Fit) -> Text:
    whose = {"gpu": "each GPU", "worker": "a worker", "server": "the parameter server"}[fit.of]
    needed = f"{whose} needs about {format_bytes(fit.needed)}"
    if fit.available is None:
        return Text(f"fit: not checked; {needed}, and {fit.field} is not set", style="yellow")
    share = f"{needed} of {format_bytes(fit.available)} ({fit.needed / fit.available:.0%})"
    return Text(f"fit: {share}", style="green") if fit.fits else Text(f"does not fit: {share}", style="bold red")


def _communication(traffic: tuple[Traffic, ...], whole: bool) -> RenderableType:
    """`whole`: it is known how many micro-batches a step has; else these are the least."""
    if not traffic:
        return Text("\nNothing is sent between ranks.")
    table = Table(
        title="Sent by a rank in one step" + ("" if whole else ", at least"),
        title_justify="left",
        title_style="bold",
        box=None,
    )
    for name in ("axis", "collective", "what", "times", "bytes", "over"):
        table.add_column(name, justify="right" if name in ("times", "bytes") else "left", header_style="dim")
    for one in traffic:
        over = "network" if one.crosses_workers else "inside worker"
        axis = f"{one.axis} ({one.ranks})"
        table.add_row(axis, one.collective, one.what, f"{one.times:,}", format_bytes(one.bytes), over)
    return table


def _grid(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _count(number: float) -> str:
    """Three digits and a unit: 68.5B parameters, 4.2e+17 FLOPs."""
    for scale, unit in ((1e12, ""), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if unit else f"{number:.3g}"
    return f"{number:.0f}"
