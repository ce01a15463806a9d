"""The dashboard of the operator: work queue, reconciles and requests to the API server."""

from typing import Any, Final

from trainyard_monitoring.frame import Row, build, source_variable
from trainyard_monitoring.panels import Panel, PanelInfo, Query, graph, stat_panel, timeline
from trainyard_monitoring.timing import TIMING

RATE: Final = "$__rate_interval"


def operator_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    rows = [Row("Now", _now()), Row("Work", _work()), Row("API server", _requests())]
    description = "The Trainyard operator: versions, work queue, reconciles, requests to the API server."
    return build("trainyard-operator", "Trainyard / Operator", description, [source_variable()], rows)


def _now() -> list[Panel]:
    return [
        stat_panel(
            PanelInfo(
                "Operators",
                "none",
                "Scraped operators: one leader, the others on standby. 0: no job is started or restarted.",
                ("TrainyardOperatorDown", "TrainyardOperatorAbsent"),
                width=6,
            ),
            Query("count(trainyard_operator_info) or vector(0)"),
            levels=((None, "red"), (1, "green")),
        ),
        stat_panel(
            PanelInfo(
                "Version",
                "none",
                "Running versions. Two versions for longer than an upgrade takes: an old operator is still running.",
                width=6,
            ),
            Query("count by (version) (trainyard_operator_info)", "{{version}}"),
            instant=True,
            show_name=True,
            absent="none",
        ),
        stat_panel(
            PanelInfo("Jobs", "none", "All jobs, including finished ones.", width=6),
            Query("sum(trainyard_operator_jobs)"),
        ),
        stat_panel(
            PanelInfo(
                "Queue stalled",
                "s",
                "How long work has waited while nothing was completed, or while the API server did not respond. Above"
                f" {TIMING.queue_stalled:.0f} s the operator hangs or the API server is down; the kubelet restarts an"
                " operator that has hung for 120 s.",
                ("TrainyardOperatorQueueStuck",),
                width=6,
            ),
            Query("max(trainyard_operator_queue_stalled_seconds)"),
            levels=((None, "green"), (10, "orange"), (TIMING.queue_stalled, "red")),
            decimals=1,
        ),
    ]


def _work() -> list[Panel]:
    buckets = f"sum by (le) (rate(trainyard_operator_reconcile_duration_seconds_bucket[{RATE}]))"
    return [
        graph(
            PanelInfo(
                "Queue",
                "none",
                "Jobs waiting to be reconciled. Growing: the operator or the API server is too slow.",
                ("TrainyardOperatorQueueStuck",),
            ),
            Query("sum by (namespace) (trainyard_operator_queue_depth)", "{{namespace}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Reconciles",
                "ops",
                "Reconciles per second by outcome. Outcomes other than ok for long: see the operator's log.",
            ),
            Query(
                f"sum by (outcome) (rate(trainyard_operator_reconcile_duration_seconds_count[{RATE}]))", "{{outcome}}"
            ),
            least=0,
        ),
        graph(
            PanelInfo("Reconcile duration", "s", "Median and 99th percentile. Seconds: the API server is slow."),
            Query(f"histogram_quantile(0.5, {buckets})", "median"),
            Query(f"histogram_quantile(0.99, {buckets})", "99th percentile"),
            least=0,
        ),
        graph(
            PanelInfo("Jobs by phase", "none", "Jobs of all namespaces that the operator watches.", width=16),
            Query("sum by (phase) (trainyard_operator_jobs)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        timeline(
            PanelInfo(
                "Leader",
                "none",
                "The operator that holds the lease. None for more than a moment: the lease cannot be written. Frequent"
                " changes: the API server responds too slowly.",
                ("TrainyardOperatorNoLeader",),
            ),
            Query("max by (namespace, pod) (trainyard_operator_leader)", "{{namespace}}/{{pod}}"),
            names={1: ("leader", "green"), 0: ("standby", "text")},
        ),
    ]


def _requests() -> list[Panel]:
    total = f"sum(rate(trainyard_operator_api_requests_total[{RATE}]))"
    bad = f'sum(rate(trainyard_operator_api_requests_total{{code=~"0|5.."}}[{RATE}]))'
    return [
        graph(
            PanelInfo(
                "Requests",
                "reqps",
                "Requests by verb and status code. 403: an RBAC rule is missing. 409: a harmless conflict. 429: the API"
                " server is overloaded. 0: no response.",
                width=12,
            ),
            Query(f"sum by (verb, code) (rate(trainyard_operator_api_requests_total[{RATE}]))", "{{verb}} {{code}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Failed requests",
                "percentunit",
                "Share of requests without a response or with a server error. Above 5% for long: check the API server.",
                ("TrainyardOperatorQueueStuck",),
                width=12,
            ),
            Query(f"({bad} or vector(0)) / ({total} > 0)", "failed"),
            levels=((None, "green"), (0.05, "orange")),
            least=0,
        ),
        graph(
            PanelInfo(
                "Failures of parts",
                "none",
                "Parts of the operator (watch, reconcile, progress, resync) that failed and were restarted. Any: see"
                " the operator's log.",
                ("TrainyardOperatorPartFailing",),
                width=24,
            ),
            Query(
                f"sum by (namespace, part) (increase(trainyard_operator_part_failures_total[{RATE}]))",
                "{{namespace}}/{{part}}",
            ),
            least=0,
        ),
    ]
