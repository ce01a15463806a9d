"""Every query of the dashboards, as Prometheus can run it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trainyard_monitoring.fleet_dashboard import fleet_dashboard
from trainyard_monitoring.job_dashboard import job_dashboard
from trainyard_monitoring.operator_dashboard import operator_dashboard


def dashboards() -> dict[str, dict[str, Any]]:
    """Return the dashboards by file name."""
    return {
        "trainyard-fleet.json": fleet_dashboard(),
        "trainyard-job.json": job_dashboard(),
        "trainyard-operator.json": operator_dashboard(),
    }


class PanelQuery(NamedTuple):
    """One expression of one panel, or of an annotation."""

    dashboard: str
    panel: str
    expression: str


def panel_queries(namespace: str, job: str, *, rate_interval: str = "1m") -> list[PanelQuery]:
    """Return all expressions of all dashboards for one job, with Grafana's variables replaced.

    Args:
        namespace: namespace of the job.
        job: name of the job.
        rate_interval: four times the scrape interval, as Grafana has it.
    """
    values = {"$__rate_interval": rate_interval, "$namespace": namespace, "$job": job}
    return [
        PanelQuery(board["title"], title, _substitute(expression, values))
        for board in dashboards().values()
        for title, expression in _expressions(board)
    ]


def _expressions(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        for target in panel.get("targets") or ():
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def _substitute(expression: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression
