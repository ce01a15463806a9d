"""The estimate that `trainyard plan` shows: layout, memory, computation and communication."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainyard.estimate import Axis, Estimate, TrainingEstimate, Work
from trainyard.resource.quantity import format_bytes
from trainyard.sizing.fit import SHARED_FIELD, Fit
from trainyard.sizing.topology import Domain
from trainyard.sizing.traffic import Traffic
from trainyard.text import plural

BAR_WIDTH = 32
"""Characters of the longest bar."""


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print an estimate as tables."""
    console.print(_job(estimate))
    if estimate.training is not None:
        training = estimate.training
        console.print(_memory(training.fit, "#" if console.options.ascii_only else "█"))
        for other in (training.host, training.server):
            if other is not None:
                console.print(_fit(other))
        complete = training.work.samples is not None
        console.print(_communication(training.communication, complete=complete))
        if training.domain is not None:
            console.print(_domain(training.domain, complete=complete))
    for warning in estimate.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _job(estimate: Estimate) -> RenderableType:
    workers = estimate.workers
    table = _grid(f"TrainingJob {estimate.namespace}/{estimate.name}")
    per_worker = f"{workers.replicas} x {plural(workers.procs_per_worker, 'rank')}"
    device = {"cpu": "CPUs", "gpu": "GPUs"}.get(workers.device, workers.device)
    ranks = f"{per_worker} = {plural(workers.ranks, 'rank')} on {device}"
    table.add_row("workers", ranks)
    if workers.limits:
        table.add_row("limits", ", ".join(f"{name} {amount}" for name, amount in workers.limits.items()))
    training = estimate.training
    if training is None:
        # A warning says why nothing is known of a job of the built-in trainer.
        program = "the built-in trainer" if estimate.warnings else "of your own"
        table.add_row("program", f"{program}: mesh, memory and communication are not known")
        return table
    table.add_row("mesh", "\n".join(map(_axis, training.axes)) or "one rank")
    table.add_row("model", _parameters(training))
    for name, text in _work(training.work, workers.ranks):
        table.add_row(name, text)
    return table


def _axis(axis: Axis) -> str:
    return f"{axis.name} {axis.size}, {'across workers' if axis.crosses_workers else 'inside each worker'}"


def _parameters(training: TrainingEstimate) -> str:
    text = f"{_count(training.parameters)} parameters"
    if training.active_parameters < training.parameters:
        text += f" of which a token uses {_count(training.active_parameters)}"
    if training.trained_parameters < training.parameters:
        text += f", {_count(training.trained_parameters)} of them trained"
    return f"{text}, {_count(training.rank_parameters)} held by a rank"


def _work(work: Work, ranks: int) -> list[tuple[str, str]]:
    if work.samples is None or work.tokens is None or work.flops is None:
        rows = [("step", f"all samples, at most {work.micro_batch} at a time on a rank")]
    else:
        samples = f"{work.samples:,} samples" + (f" = {work.tokens:,} tokens" if work.tokens != work.samples else "")
        rows = [
            ("step", f"{samples}; each rank computes {work.micro_batches} x {work.micro_batch} samples"),
            ("compute", f"{_count(work.flops)} FLOPs per step, {_count(work.flops / ranks)} per rank"),
        ]
    if work.stages:
        layers = " + ".join(map(str, work.stages))
        rows.append(("pipeline", f"{layers} layers, bubble {work.bubble:.0%}"))
    return rows


def _memory(fit: Fit, block: str) -> RenderableType:
    """Return a bar for each part of the memory, drawn with `block`, and the fit below them."""
    table = _grid(f"Memory of a rank at its peak: {fit.memory.moment}")
    table.columns[1].justify = "right"
    table.add_column()
    parts = {name: size for name, size in fit.memory.parts.items() if size} | {"process": fit.process}
    largest = max(parts.values())
    for name, size in parts.items():
        table.add_row(name, format_bytes(size), Text(block * round(BAR_WIDTH * size / largest), style="cyan"))
    table.add_row("total", format_bytes(sum(parts.values())), "")
    return Group(table, _fit(fit))


def _fit(fit: Fit) -> Text:
    holder = {"server": "the parameter server", "gpu": "each GPU"}.get(fit.of, "a worker")
    memory = "host memory: about " if fit.of == "host" else "about "
    needed = f"{holder} needs {memory}{format_bytes(fit.needed)}"
    if fit.shared:
        needed += f", with {format_bytes(fit.shared)} of {SHARED_FIELD} besides copies for checkpoints,"
    if fit.available is None:
        return Text(f"fit: not checked; {needed}, and {fit.field} is not set", style="yellow")
    share = f"{needed} of {format_bytes(fit.available)} ({fit.needed / fit.available:.0%})"
    return Text(f"fit: {share}", style="green") if fit.fits else Text(f"does not fit: {share}", style="bold red")


def _communication(traffic: tuple[Traffic, ...], complete: bool) -> RenderableType:
    """Return a table of what a rank sends in a step.

    `complete`: the number of micro-batches is known; otherwise the amounts are lower bounds.
    """
    if not traffic:
        return Text("\nRanks send nothing to each other.")
    table = Table(
        title="Sent by a rank in one step" + ("" if complete else ", at least"),
        title_justify="left",
        title_style="bold",
        box=None,
    )
    for name in ("axis", "collective", "what", "times", "bytes", "over"):
        table.add_column(name, justify="right" if name in ("times", "bytes") else "left", header_style="dim")
    for entry in traffic:
        over = "network" if entry.crosses_workers else "inside worker"
        axis = f"{entry.axis} ({entry.ranks})"
        table.add_row(axis, entry.collective, entry.what, f"{entry.times:,}", format_bytes(entry.bytes), over)
    return table


def _domain(domain: Domain, complete: bool) -> Text:
    """Return a line about what leaves a topology domain. `complete` is that of `_communication`."""
    if domain.count == 1 and not domain.bytes:
        return Text(f"topology: all workers get nodes of one domain of {domain.key}, which nothing leaves")
    at_least = "" if complete else "at least "
    return Text(
        f"topology: {plural(domain.workers, 'worker')} in each of up to {domain.count} domains of {domain.key}; "
        f"{at_least}{format_bytes(domain.bytes)} leave such a domain in one step"
    )


def _grid(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _count(number: float) -> str:
    """Return a number with three digits and a unit: "68.5B" parameters, "4.2e+17" FLOPs."""
    for scale, unit in ((1e12, ""), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if unit else f"{number:.3g}"
    return f"{number:.0f}"
