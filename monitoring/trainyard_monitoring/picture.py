"""A picture of a dashboard without Grafana, for the documentation.

Panels, queries, units and texts are those of the dashboard, the values come from Prometheus; fonts are matplotlib's.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator

COLUMNS = 24
"""Columns of Grafana's grid."""
_CELL = (0.5, 0.33)
"""Width and height of a cell in inches; small, so that the text stays readable in a picture that is scaled down."""
_TITLE, _TEXT = 9.5, 8
"""Font sizes."""
_COLORS = {
    "green": "#56a64b",
    "red": "#e02f44",
    "orange": "#ff780a",
    "yellow": "#f2cc0c",
    "blue": "#3274d9",
    "purple": "#a352cc",
    "text": "#8e8e8e",
}
"""Grafana's colours by name."""
_STEPS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


class Series(NamedTuple):
    """One series of the result of a range query."""

    labels: Mapping[str, str]
    times: Sequence[float]
    """Unix times, in seconds."""
    values: Sequence[float]


Read = Callable[[str], list[Series]]
"""Evaluates an expression over the time range of the picture."""


def draw(board: Mapping[str, Any], read: Read, target: Path, *, start: float) -> None:
    """Draw a dashboard into a file.

    Args:
        board: the dashboard, as Grafana imports it.
        read: returns the series of an expression.
        target: the file to write, a PNG.
        start: Unix time that is 0 on the time axes.
    """
    mpl.use("agg")
    panels = list(_without_texts(board["panels"]))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(COLUMNS * _CELL[0], rows * _CELL[1]), facecolor="#f4f5f5")
    grid = figure.add_gridspec(rows, COLUMNS, left=0.01, right=0.99, top=0.995, bottom=0.005, wspace=0, hspace=0)
    for panel in panels:
        place = panel["gridPos"]
        area = grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
        if panel["type"] == "row":
            _heading(figure.add_subplot(area), panel["title"])
            continue
        # The title and the labels of the axes need space inside the panel.
        inner = area.subgridspec(20, 20)
        axes = figure.add_subplot(inner[3:15, 4:17] if panel["type"] != "stat" else inner[:, :])
        _panel(axes, panel, read, start)
    figure.savefig(target, dpi=80)
    plt.close(figure)


def _without_texts(panels: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Return the panels without texts, whose links need a browser; the panels below move up."""
    up = 0
    for panel in panels:
        if panel["type"] == "text":
            up += panel["gridPos"]["h"]
        else:
            yield {**panel, "gridPos": {**panel["gridPos"], "y": panel["gridPos"]["y"] - up}}


def _heading(axes: Axes, title: str) -> None:
    axes.axis("off")
    axes.text(0, 0.4, title, fontsize=12, fontweight="bold", va="center")


def _panel(axes: Axes, panel: Mapping[str, Any], read: Read, start: float) -> None:
    found = [
        (_legend(target.get("legendFormat", ""), series), series)
        for target in panel.get("targets", ())
        for series in read(target["expr"])
    ]
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit", "none")
    if panel["type"] == "stat":
        _stat(axes, panel["title"], found, defaults)
        return
    axes.set_title(panel["title"], fontsize=_TITLE, loc="left")
    axes.tick_params(labelsize=_TEXT)
    axes.xaxis.set_major_formatter(_InUnit("s"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel["type"] == "state-timeline":
        _states(axes, found, start, _state_colors(panel))
        return
    right = _units_on_the_right(panel)
    stacked = (defaults.get("custom") or {}).get("stacking", {}).get("mode") == "normal"
    _lines(axes, [(name, series) for name, series in found if name not in right], start, stacked=stacked)
    _set_unit(axes, unit)
    if "min" in defaults:
        top = axes.get_ylim()[1]
        axes.set_ylim(defaults["min"], top + 0.1 * (top - defaults["min"]))
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    for other, (name, its_unit) in enumerate(right.items()):
        twin = axes.twinx()
        twin.tick_params(labelsize=_TEXT)
        twin.yaxis.set_major_locator(MaxNLocator(5))
        _set_unit(twin, its_unit)
        for _, series in (pair for pair in found if pair[0] == name):
            times = [time - start for time in series.times]
            handles += twin.plot(times, series.values, linewidth=1.3, color=f"C{len(names) + other}")
            names.append(name)
    if handles:
        below = (0.5, -0.17)
        columns = 3 if max(len(name) for name in names) < 16 else 2
        axes.legend(
            handles,
            names,
            fontsize=_TEXT,
            ncols=columns,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=below,
            columnspacing=1.0,
            handlelength=1.2,
            borderpad=0,
            labelspacing=0.2,
        )


def _units_on_the_right(panel: Mapping[str, Any]) -> dict[str, str]:
    """Return the units of the series that have an axis of their own, by name."""
    found = {}
    for override in panel["fieldConfig"].get("overrides") or ():
        properties = {entry["id"]: entry["value"] for entry in override["properties"]}
        if properties.get("custom.axisPlacement") == "right":
            found[override["matcher"]["options"]] = properties.get("unit", "none")
    return found


def _set_unit(axes: Axes, unit: str) -> None:
    axes.yaxis.set_major_formatter(_InUnit(unit))


def _state_colors(panel: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of the value 1 of each series that the dashboard gives one, by name."""
    colors = {}
    for override in panel["fieldConfig"].get("overrides") or ():
        for entry in override["properties"]:
            if entry["id"] == "mappings":
                color = entry["value"][0]["options"].get("1", {}).get("color", "")
                colors[override["matcher"]["options"]] = _COLORS.get(color, "C0")
    return colors


class _InUnit(Formatter):
    """Formats ticks in one of Grafana's units, with enough digits to tell neighbours apart."""

    def __init__(self, unit: str) -> None:
        self._unit = unit

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        for more in range(4):
            texts = [in_unit(value, self._unit, more) for value in values]
            if len(set(texts)) == len(texts):
                break
        return texts


def _lines(axes: Axes, found: Sequence[tuple[str, Series]], start: float, *, stacked: bool) -> None:
    if stacked and found:
        times = sorted({time for _, series in found for time in series.times})
        by_time = [dict(zip(series.times, series.values, strict=True)) for _, series in found]
        values = [[_number(points.get(time, 0.0)) for time in times] for points in by_time]
        axes.stackplot([time - start for time in times], values, labels=[name for name, _ in found], alpha=0.6)
        return
    for name, series in found:
        axes.plot([time - start for time in series.times], series.values, label=name, linewidth=1.3)


def _states(axes: Axes, found: Sequence[tuple[str, Series]], start: float, colors: Mapping[str, str]) -> None:
    for row, (name, series) in enumerate(found):
        on = [(time - start, 5.0) for time, value in zip(series.times, series.values, strict=True) if value]
        axes.broken_barh(on, (row - 0.4, 0.8), facecolors=colors.get(name, "C0"))
    axes.set_yticks(range(len(found)), [name for name, _ in found])


def _stat(axes: Axes, title: str, found: Sequence[tuple[str, Series]], defaults: Mapping[str, Any]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.04, 0.86, title, fontsize=_TITLE, va="top", transform=axes.transAxes)
    names = {
        float(value): result["text"]
        for mapping in defaults.get("mappings") or ()
        for value, result in mapping["options"].items()
    }
    words = []
    for name, series in found:
        last = series.values[-1]
        words.append(names.get(last) or (name if not defaults.get("unit") else in_unit(last, defaults["unit"])))
    text = " / ".join(words) or defaults.get("noValue", "")
    axes.text(0.5, 0.36, text, fontsize=14, ha="center", va="center", transform=axes.transAxes)


def _legend(form: str, series: Series) -> str:
    if form in ("", "__auto"):
        return ", ".join(value for name, value in series.labels.items() if name not in ("namespace", "job_name"))
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: series.labels.get(found[1], ""), form)


def _number(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def in_unit(value: float, unit: str, more: int = 0) -> str:
    """Return a value in one of Grafana's units; `more`: digits beyond the usual ones."""
    if unit == "percentunit":
        return f"{value * 100:.{3 + more}g}%"
    if unit == "sci":
        return f"{value:.{1 + more}e}"
    if unit == "bytes":
        mebibytes, gibibytes = value / 2**20, value / 2**30
        return f"{mebibytes:.{more}f} MiB" if abs(value) < 2**30 else f"{gibibytes:.{1 + more}f} GiB"
    if unit == "s" and value and abs(value) < 1:
        return f"{value * 1000:.{3 + more}g} ms"
    if unit == "s" and abs(value) >= 120:
        return f"{value / 60:.{1 + more}f} min"
    name, size = max(
        ((name, size) for name, size in _STEPS.items() if abs(value) >= size or size == 1), key=lambda step: step[1]
    )
    suffix = {"s": "s", "flops": "FLOP/s", "ops": "/s", "reqps": "/s"}.get(unit, "")
    return " ".join(f"{value / size:.{4 + more}g} {name}{suffix}".split())
