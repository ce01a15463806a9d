"""A job and its ranks on one screen."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trainyard.resource.job import TrainingJob
from trainyard.text import plural
from trainyard_cli.cluster.ranks import JobView, RankView
from trainyard_cli.views import tables
from trainyard_cli.views.formatting import duration, progress_line


def job_screen(job: TrainingJob, view: JobView, now: float) -> Iterator[RenderableType]:
    """Yield the parts of the screen from top to bottom. `now`: Unix time in seconds."""
    head = Text.assemble((job.metadata.name, "bold"), "  ", tables.phase_text(job), f"  attempt {job.status.attempt}  ")
    yield head.append(progress_line(job))
    bar = tables.progress_bar(job)
    if bar is not None:
        yield bar
    if view.phases:
        step = sum(view.phases.values())
        shares = ", ".join(f"{phase} {seconds / step:.0%}" for phase, seconds in view.phases.items() if seconds)
        yield Text(f"a step takes {step:.3f} s on rank 0: {shares}")
    if view.parts:
        exposed, overlapped = view.parts.get("communication", 0.0), view.parts.get("overlap", 0.0)
        yield Text(f"communication: {exposed:.0%} of the step exposed, {overlapped:.0%} overlapped with computation")
    yield Text()
    yield _rank_table(view.ranks, now)
    if view.problem:
        yield Text(f"some ranks have no metrics: {view.problem}", style="yellow")
    if view.omitted_pods:
        yield Text(f"{plural(view.omitted_pods, 'pod')} omitted; the dashboards in Grafana show all", style="dim")


def _rank_table(ranks: list[RankView], now: float) -> Table:
    table = tables.plain_table(
        "RANK", "POD", "NODE", "STATE", "LAST STEP", "COMPUTE", "SLOWER", "RSS", "GPU MEM", "GPU PEAK"
    )
    for rank in ranks:
        memory = rank.memory
        table.add_row(
            str(rank.rank),
            rank.pod,
            rank.node,
            rank.state,
            "" if rank.last_step is None else f"{duration(now - rank.last_step)} ago",
            "" if rank.compute is None else f"{rank.compute * 1000:.2f} ms",
            "" if rank.straggler is None else f"{rank.straggler:.1f} x",
            *(_size(memory.get(kind)) for kind in ("resident", "allocated", "peak")),
            style="yellow" if rank.straggler is not None else "",
        )
    return table


def _size(size: float | None) -> str:
    if size is None:
        return ""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
