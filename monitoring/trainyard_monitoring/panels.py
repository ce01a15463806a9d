"""The kinds of panel that the dashboards consist of, on top of Grafana's own builders.

The description of each panel says what it shows and what to do about a bad value. Each panel links the runbooks of the
alerts on the same metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from trainyard_monitoring.timing import RUNBOOKS

Panel = stat.Panel | statetimeline.Panel | table.Panel | text.Panel | timeseries.Panel

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")

Levels = Sequence[tuple[float | None, str]]
"""Thresholds: the value at which each colour begins; the first value is None."""
PLAIN: Final[Levels] = ((None, "text"),)
GOOD_AT_ZERO: Final[Levels] = ((None, "green"), (1, "orange"))


@dataclass(frozen=True)
class Query:
    """One expression of a panel, and the legend of its series."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True)
class PanelInfo:
    """Title, unit and description of a panel."""

    title: str
    unit: str
    """Identifier of a Grafana unit: s, bytes, percentunit, short, none, ..."""
    description: str
    runbooks: Sequence[str] = ()
    """Alerts whose runbooks are linked."""
    width: int | None = None
    """Columns of 24; None: 4 for a stat, 8 for other panels."""
    height: int | None = None
    """Rows; None: 4 for a stat, 8 for other panels."""


def _targets(queries: Sequence[Query], *, instant: bool = False, as_table: bool = False) -> list[prometheus.Dataquery]:
    targets = []
    for ref_id, query in zip("ABCDEFGHIJKL", queries, strict=False):
        target = prometheus.Dataquery().ref_id(ref_id).expr(query.expression).legend_format(query.legend)
        target = target.instant() if instant else target.range()
        targets.append(target.format(PromQueryFormat.TABLE) if as_table else target)
    return targets


def _links(info: PanelInfo) -> list[dashboard.DashboardLink]:
    return [
        dashboard.DashboardLink(f"Runbook: {name}")
        .type(DashboardLinkType.LINK)
        .url(f"{RUNBOOKS}/{name}.md")
        .target_blank(True)
        for name in info.runbooks
    ]


def _thresholds(levels: Levels) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value, color) for value, color in levels]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def value_map(names: Mapping[int, tuple[str, str]]) -> list[ValueMapping]:
    """Return value mappings: a text and a colour for each number."""
    options = {
        str(value): ValueMappingResult(text=name, color=color, index=index)
        for index, (value, (name, color)) in enumerate(names.items())
    }
    return [ValueMap(options)]


def stat_panel(
    info: PanelInfo,
    *queries: Query,
    levels: Levels = PLAIN,
    names: Mapping[int, tuple[str, str]] | None = None,
    decimals: int | None = None,
    absent: str = "–",
    instant: bool = False,
    show_name: bool = False,
) -> stat.Panel:
    """Return a panel that shows the current value; `absent` is its text where there is no series."""
    panel = (
        stat.Panel()
        .title(info.title)
        .description(info.description)
        .datasource(SOURCE)
        .targets(list(_targets(queries, instant=instant)))
        .unit(info.unit)
        .thresholds(_thresholds(levels))
        .no_value(absent)
        .span(info.width or 4)
        .height(info.height or 4)
        .links(list(_links(info)))
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    if show_name:
        panel = panel.text_mode(BigValueTextMode.NAME)
    if names is not None:
        panel = panel.mappings(value_map(names))
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    info: PanelInfo,
    *queries: Query,
    levels: Levels | None = None,
    stacked: bool = False,
    least: float | None = None,
    right: Mapping[str, str] | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Return a panel with values over time; `right` names series, by legend, with an axis on the right and its unit."""
    panel = (
        timeseries.Panel()
        .title(info.title)
        .description(info.description)
        .datasource(SOURCE)
        .targets(list(_targets(queries)))
        .unit(info.unit)
        .span(info.width or 8)
        .height(info.height or 8)
        .links(list(_links(info)))
        .line_width(1)
        .fill_opacity(30 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if levels is not None:
        panel = panel.thresholds(_thresholds(levels))
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    if least is not None:
        panel = panel.min(least)
    if logarithmic:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    for legend, unit in (right or {}).items():
        panel = panel.override_by_name(
            legend, [DynamicConfigValue("unit", unit), DynamicConfigValue("custom.axisPlacement", "right")]
        )
    return panel


def timeline(
    info: PanelInfo,
    *queries: Query,
    names: Mapping[int, tuple[str, str]],
    colors: Mapping[str, str] | None = None,
) -> statetimeline.Panel:
    """Return a panel with states over time, one row for each series.

    Args:
        info: title, unit and description.
        queries: expressions whose values are states.
        names: text and colour of each state.
        colors: colour of the state 1 of single series, by legend, where it differs from that of `names`.
    """
    panel = (
        statetimeline.Panel()
        .title(info.title)
        .description(info.description)
        .datasource(SOURCE)
        .targets(list(_targets(queries)))
        .unit(info.unit)
        .mappings(value_map(names))
        .span(info.width or 8)
        .height(info.height or 8)
        .links(list(_links(info)))
        .merge_values(True)
        .show_value(VisibilityMode.NEVER)
    )
    for legend, color in (colors or {}).items():
        states = {**names, 1: (names[1][0], color)}
        panel = panel.override_by_name(legend, [DynamicConfigValue("mappings", value_map(states))])
    return panel


@dataclass(frozen=True)
class Column:
    """A column of a table: its query, and how values are shown."""

    title: str
    query: str
    unit: str
    names: Mapping[int, tuple[str, str]] | None = None


def table_panel(info: PanelInfo, keys: Mapping[str, str], columns: Sequence[Column], link: str) -> table.Panel:
    """Return a table with one row for each set of labels.

    Args:
        info: title, unit and description.
        keys: labels that identify a row, with their titles.
        columns: the columns with values.
        link: target of the link on the last key.
    """
    names = {f"Value #{letter}": column.title for letter, column in zip("ABCDEFGHIJKL", columns, strict=False)}
    order = {name: index for index, name in enumerate((*keys, *names))}
    panel = (
        table.Panel()
        .title(info.title)
        .description(info.description)
        .datasource(SOURCE)
        .targets(list(_targets([Query(column.query) for column in columns], instant=True, as_table=True)))
        .unit(info.unit)
        .span(info.width or 8)
        .height(info.height or 8)
        .links(list(_links(info)))
        .transformations(
            [
                DataTransformerConfig(id_val="merge", options={}),
                DataTransformerConfig(
                    id_val="organize",
                    options={
                        "excludeByName": {"Time": True},
                        "indexByName": order,
                        "renameByName": {**keys, **names},
                    },
                ),
            ]
        )
    )
    for column in columns:
        panel = panel.override_by_name(column.title, _column_properties(column))
    return panel.override_by_name(
        list(keys.values())[-1], [DynamicConfigValue("links", [{"title": "Open the job", "url": link}])]
    )


def _column_properties(column: Column) -> list[DynamicConfigValue]:
    found = [DynamicConfigValue("unit", column.unit)]
    if column.names is not None:
        found.append(DynamicConfigValue("mappings", value_map(column.names)))
        found.append(DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    return found


def text_panel(title: str, description: str, markdown: str, *, width: int = 24, height: int = 6) -> text.Panel:
    """Return a panel with a text in Markdown."""
    panel = text.Panel().title(title).description(description).mode(TextMode.MARKDOWN).content(markdown)
    return panel.span(width).height(height)


def to_json_types(value: Any) -> Any:
    """Return the result of a builder as dictionaries and lists."""
    if hasattr(value, "to_json"):
        return to_json_types(value.to_json())
    if isinstance(value, dict):
        return {key: to_json_types(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(child) for child in value]
    return value
