"""The operator: does it keep up, and does the API server answer it?"""

from typing import Any, Final

from trainyard_monitoring.frame import Row, build, source_variable
from trainyard_monitoring.panels import About, Panel, Query, figure, graph, timeline
from trainyard_monitoring.timing import TIMING

RATE: Final = "$__rate_interval"


def operator_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    rows = [Row("Now", _now()), Row("Work", _work()), Row("API server", _requests())]
    about = "The operator of Trainyard: versions, work queue, looks at jobs, requests to the API server."
    return build("trainyard-operator", "Trainyard / Operator", about, [source_variable()], rows)


def _now() -> list[Panel]:
    return [
        figure(
            About(
                "Operators",
                "none",
                "How many are scraped; one leads, others stand by. 0: nothing is started or restarted.",
                ("TrainyardOperatorDown", "TrainyardOperatorAbsent"),
                width=6,
            ),
            Query("count(trainyard_operator_info) or vector(0)"),
            levels=((None, "red"), (1, "green")),
        ),
        figure(
            About(
                "Version",
                "none",
                "What runs. Two versions for longer than an upgrade: one operator was forgotten.",
                width=6,
            ),
            Query("count by (version) (trainyard_operator_info)", "{{version}}"),
            instant=True,
            show_name=True,
            absent="none",
        ),
        figure(
            About("Jobs", "none", "Jobs that there are, ended ones too.", width=6),
            Query("sum(trainyard_operator_jobs)"),
        ),
        figure(
            About(
                "Queue stands still",
                "s",
                "How long work has waited without any being finished, or without an answer of the API server. Above"
                f" {TIMING.queue_stalled:.0f} s something hangs, or is away; the kubelet restarts an operator that has"
                " hung for 120 s.",
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
            About(
                "Queue",
                "none",
                "Jobs that wait for a look. Growing: the operator or the API server is too slow.",
                ("TrainyardOperatorQueueStuck",),
            ),
            Query("sum by (namespace) (trainyard_operator_queue_depth)", "{{namespace}}"),
            least=0,
        ),
        graph(
            About(
                "Looks at jobs",
                "ops",
                "Per second, by outcome. Other outcomes than ok for long: read the operator's log.",
            ),
            Query(
                f"sum by (outcome) (rate(trainyard_operator_reconcile_duration_seconds_count[{RATE}]))", "{{outcome}}"
            ),
            least=0,
        ),
        graph(
            About("Time of one look", "s", "Median and 99th percentile. Seconds: the API server is slow."),
            Query(f"histogram_quantile(0.5, {buckets})", "median"),
            Query(f"histogram_quantile(0.99, {buckets})", "99%"),
            least=0,
        ),
        graph(
            About("Jobs by phase", "none", "Of all namespaces that the operator watches.", width=16),
            Query("sum by (phase) (trainyard_operator_jobs)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        timeline(
            About(
                "Leader",
                "none",
                "Which of the operators works. None for more than a moment: nobody can write the lease. Another one"
                " again and again: the API server answers too late.",
                ("TrainyardOperatorNoLeader",),
            ),
            Query("max by (namespace, pod) (trainyard_operator_leader)", "{{namespace}}/{{pod}}"),
            names={1: ("leads", "green"), 0: ("stands by", "text")},
        ),
    ]


def _requests() -> list[Panel]:
    total = f"sum(rate(trainyard_operator_api_requests_total[{RATE}]))"
    bad = f'sum(rate(trainyard_operator_api_requests_total{{code=~"0|5.."}}[{RATE}]))'
    return [
        graph(
            About(
                "Requests",
                "reqps",
                "By verb and answer. 403: a rule of RBAC is missing. 409: harmless, the status had"
                " changed. 429: the API server is overloaded. 0: no answer.",
                width=12,
            ),
            Query(f"sum by (verb, code) (rate(trainyard_operator_api_requests_total[{RATE}]))", "{{verb}} {{code}}"),
            least=0,
        ),
        graph(
            About(
                "Requests without a good answer",
                "percentunit",
                "No answer, or an error of the server. Above 5% for long: look at the API server.",
                ("TrainyardOperatorQueueStuck",),
                width=12,
            ),
            Query(f"({bad} or vector(0)) / ({total} > 0)", "failed"),
            levels=((None, "green"), (0.05, "orange")),
            least=0,
        ),
    ]
