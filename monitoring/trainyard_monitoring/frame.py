"""Common parts of the dashboards: variables, annotations, links, and their form as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationContainer,
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    VariableHide,
    VariableModel,
    VariableRefresh,
    VariableSort,
)

from trainyard_monitoring.panels import SOURCE, Panel, to_json_types

PHASES: Final[Mapping[int, tuple[str, str]]] = {
    0: ("Pending", "yellow"),
    1: ("Restarting", "orange"),
    2: ("Running", "green"),
    3: ("Suspended", "blue"),
    4: ("Failed", "red"),
    5: ("Succeeded", "purple"),
}
"""Number, name and colour of each phase. If several conditions are true, the one with the largest number counts."""


def phase(selector: str) -> str:
    """Return an expression for the number of each job's phase."""
    conditions = [
        f'trainyard_job_condition{{{selector}, condition="{name}"}} * {number}'
        for number, (name, _) in PHASES.items()
        if number
    ]
    return f"max by (namespace, job_name) ({' or '.join(conditions)})"


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, from left to right, 24 columns wide."""

    title: str
    panels: Sequence[Panel]


class _TimedAnnotation(AnnotationQuery):
    """An annotation at times given by the values of a series, which Grafana's builders do not support."""

    def __init__(self, name: str, expression: str, color: str, title: str, tags: str) -> None:
        super().__init__(name=name, datasource=SOURCE, icon_color=color, expr=expression)
        self._more = {"titleFormat": title, "tagKeys": tags, "useValueForTime": True, "step": "30s"}

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **self._more}


def timed_annotations(selector: str) -> list[AnnotationQuery]:
    """Return annotations for failures and checkpoints of a job; Grafana expects milliseconds."""
    failures = f"trainyard_job_last_failure_timestamp_seconds{{{selector}}} * 1000"
    checkpoints = f"trainyard_checkpoint_timestamp_seconds{{{selector}}} * 1000"
    return [
        _TimedAnnotation("Failures", failures, "red", "The attempt failed", "reason"),
        _TimedAnnotation("Checkpoints", checkpoints, "blue", "Checkpoint complete", "pod"),
    ]


def source_variable() -> dashboard.DatasourceVariable:
    """Return the variable for the Prometheus data source."""
    return (
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").hide(VariableHide.DONT_HIDE)
    )


def label_variable(name: str, title: str, query: str, *, several: bool = False) -> dashboard.QueryVariable:
    """Return a variable for a label, with the values of a query; `several`: more than one can be selected, or all."""
    variable = (
        dashboard.QueryVariable(name)
        .label(title)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
    return variable.multi(True).include_all(True).all_value(".*") if several else variable


def build(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Builder[VariableModel]],
    rows: Sequence[Row],
    annotations: Sequence[AnnotationQuery] = (),
) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it."""
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["trainyard"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Trainyard")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["trainyard"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in variables:
        board = board.with_variable(variable)
    for row in rows:
        board = board.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            board = board.with_panel(panel)
    built = board.build()
    built.annotations = AnnotationContainer(list(annotations))
    plain: dict[str, Any] = to_json_types(built)
    for number, panel in enumerate(plain["panels"], 1):
        panel["id"] = number
    return plain


def to_json(board: Mapping[str, Any]) -> str:
    """Return the content of a dashboard file."""
    return json.dumps(board, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
