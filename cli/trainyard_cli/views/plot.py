"""Loss and throughput over the steps, in a file or in the terminal."""

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from trainyard.resource.job import TrainingJob
from trainyard.text import plural
from trainyard_cli.views.formatting import throughput_unit
from trainyard_cli.views.step_reports import StepReport

_HEADROOM = 1.15
"""Upper end of the throughput axis, as a multiple of the highest throughput."""


def save_plot(job: TrainingJob, reports: list[StepReport], target: Path) -> None:
    """Draw loss and throughput, one line for each attempt, into a PNG, SVG or PDF file.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib as mpl  # imported late: it takes most of a second

    mpl.use("agg")
    from matplotlib import pyplot as plt

    unit, speed = _throughput(job)
    figure, (losses, speeds) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    attempts = sorted({report.attempt for report in reports})
    for attempt in attempts:
        own = [report for report in reports if report.attempt == attempt]
        steps = [report.step for report in own]
        losses.plot(steps, [report.loss for report in own], marker=".", markersize=3, label=f"attempt {attempt}")
        # The first report includes the start of the processes.
        speeds.plot(steps[1:], [speed(report) for report in own[1:]], marker=".", markersize=3)
    if len(attempts) > 1:
        losses.legend()
    losses.set_title(f"{job.metadata.name}: {plural(job.spec.workers.replicas, 'worker')}")
    losses.set_ylabel("loss (nats)")
    speeds.set_ylabel(unit)
    speeds.set_xlabel("step")
    speeds.yaxis.set_major_formatter("{x:,.0f}")
    speeds.xaxis.get_major_locator().set_params(integer=True)
    # matplotlib leaves space in proportion to the range of the values, of which a steady throughput has almost none.
    highest = max((y for line in speeds.lines for y in line.get_ydata() if math.isfinite(y)), default=0.0)
    speeds.set_ylim(0, _HEADROOM * highest or 1.0)
    for axes in (losses, speeds):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(target, dpi=120)
    finally:
        plt.close(figure)


def draw_plot(job: TrainingJob, reports: list[StepReport]) -> None:
    """Draw loss and throughput into the terminal, one line for each attempt."""
    import plotext  # imported late: it is used by one command only

    unit, speed = _throughput(job)
    figure = plotext.figure
    figure.clear()
    figure.subplots(2, 1)
    for row, title, values in (
        (1, f"{job.metadata.name}: loss (nats)", [(r.attempt, r.step, r.loss) for r in reports]),
        (2, unit, [(r.attempt, r.step, speed(r)) for r in reports]),
    ):
        part = figure.subplot(row, 1)
        part.title(title)
        for attempt in sorted({report.attempt for report in reports}):
            # NaN and Inf must not reach plotext: they end the process.
            points = [(step, value) for of, step, value in values if of == attempt and math.isfinite(value)]
            if points:
                signal = part.signal(*map(list, zip(*points, strict=True)), marker="braille")
                signal.lines()
                part.draw(signal)
    size = shutil.get_terminal_size((80, 24))
    figure.plot_size(width=size.columns, height=max(12, size.lines - 2))
    figure.show(colorless=not sys.stdout.isatty())


def _throughput(job: TrainingJob) -> tuple[str, Callable[[StepReport], float]]:
    """Return the unit of the throughput, and the function that reads it from a report."""
    unit = throughput_unit(job)
    if unit == "samples/s":
        return unit, lambda report: report.samples_per_second
    return unit, lambda report: report.tokens_per_second
