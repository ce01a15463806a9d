"""The dashboard of all jobs: which ones need attention, and what the fleet achieves."""

from typing import Any, Final

from trainyard_monitoring.frame import PHASES, Row, build, label_variable, phase, source_variable
from trainyard_monitoring.job_dashboard import UID as JOB_UID
from trainyard_monitoring.panels import GOOD_AT_ZERO, Column, Panel, PanelInfo, Query, graph, stat_panel, table_panel
from trainyard_monitoring.promql import per_job

S: Final = 'namespace=~"$namespace"'
NAME: Final = "{{namespace}}/{{job_name}}"
_WORKERS: Final = per_job(f'trainyard_job_pods{{{S}, state="Running"}}')


def fleet_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    rows = [
        Row("Now", _now()),
        Row("Jobs", [_jobs()]),
        Row("Over time", _history()),
    ]
    namespaces = "label_values(trainyard_job_condition, namespace)"
    variables = [source_variable(), label_variable("namespace", "Namespace", namespaces, several=True)]
    description = "All TrainingJobs: phases, alerts, speed, goodput, restarts, waiting."
    return build("trainyard-fleet", "Trainyard / Fleet", description, variables, rows)


def _count(condition: str) -> str:
    true = f'trainyard_job_condition{{{S}, condition="{condition}"}} == 1'
    return f"count({per_job(true)}) or vector(0)"


def _now() -> list[Panel]:
    pending = per_job(f"trainyard_job_pending_seconds{{{S}}} > 0")
    alerts = f'count(ALERTS{{{S}, alertname=~"Trainyard.+", alertstate="firing"}}) or vector(0)'
    return [
        stat_panel(PanelInfo("Running", "none", "Jobs with all workers running."), Query(_count("Running"))),
        stat_panel(
            PanelInfo(
                "Waiting",
                "none",
                "Jobs that should be running but do not have all of their workers. For long: no free capacity.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"count({pending}) or vector(0)"),
            levels=GOOD_AT_ZERO,
        ),
        stat_panel(
            PanelInfo(
                "Degraded", "none", "Jobs that run with a problem; the message of the condition Degraded names it."
            ),
            Query(_count("Degraded")),
            levels=GOOD_AT_ZERO,
        ),
        stat_panel(
            PanelInfo("Failed", "none", "Failed jobs that have not been deleted.", ("TrainyardJobFailed",)),
            Query(_count("Failed")),
            levels=GOOD_AT_ZERO,
        ),
        stat_panel(
            PanelInfo("Workers", "none", "Running worker pods of all jobs."),
            Query(f"sum({_WORKERS}) or vector(0)"),
        ),
        stat_panel(
            PanelInfo(
                "Firing alerts",
                "none",
                "Firing alerts on jobs in these namespaces. The table shows the jobs; their dashboards show the"
                " alerts.",
            ),
            Query(alerts),
            levels=GOOD_AT_ZERO,
        ),
    ]


def _goodput() -> str:
    productive = per_job(f'trainyard_job_goodput_seconds_total{{{S}, part="productive"}}')
    return f"{productive} / {per_job(per_job(f'trainyard_job_goodput_seconds_total{{{S}}}', 'max', 'part'), 'sum')}"


def _restarts() -> str:
    return per_job(per_job(f"trainyard_job_restarts_total{{{S}}}", "max", "counted"), "sum")


def _jobs() -> Panel:
    done = f"{per_job(f'trainyard_steps_total{{{S}}}')} / {per_job(f'trainyard_planned_steps{{{S}}}')}"
    columns = [
        Column("Phase", phase(S), "none", PHASES),
        Column("Alerts", f'count by (namespace, job_name) (ALERTS{{{S}, job_name!="", alertstate="firing"}})', "none"),
        Column("Done", done, "percentunit"),
        Column("Loss", per_job(f"trainyard_loss{{{S}}}"), "none"),
        Column("Tokens/s", per_job(f"trainyard_tokens_per_second{{{S}}}"), "short"),
        Column("MFU", per_job(f"trainyard_mfu_ratio{{{S}}}"), "percentunit"),
        Column("Goodput", _goodput(), "percentunit"),
        Column("Restarts", _restarts(), "none"),
        Column("Workers", _WORKERS, "none"),
        Column("Last checkpoint", f"time() - {per_job(f'trainyard_checkpoint_timestamp_seconds{{{S}}}')}", "s"),
    ]
    info = PanelInfo(
        "Jobs",
        "none",
        "Click a job to open its dashboard. Look first at jobs with alerts, then at low goodput.",
        ("TrainyardJobFailed", "TrainyardRestartStorm"),
        width=24,
        height=10,
    )
    target = "?var-datasource=${datasource}&var-namespace=${__data.fields.Namespace}&var-job=${__value.text}"
    return table_panel(info, {"namespace": "Namespace", "job_name": "Job"}, columns, f"/d/{JOB_UID}{target}")


def _history() -> list[Panel]:
    reasons = f"max by (namespace, job_name, reason) (trainyard_job_last_failure_timestamp_seconds{{{S}}})"
    return [
        graph(
            PanelInfo("Jobs by phase", "none", "Jobs of all namespaces that the operator watches."),
            Query("sum by (phase) (trainyard_operator_jobs)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        graph(
            PanelInfo(
                "Workers: needed and running",
                "none",
                "A lasting gap: the cluster is too small, or a job does not fit.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"sum({per_job(f'trainyard_job_workers_desired{{{S}}}')})", "needed"),
            Query(f"sum({_WORKERS})", "running"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Tokens per second",
                "short",
                "Throughput by job. Look at jobs whose line drops.",
                ("TrainyardThroughputDropped",),
            ),
            Query(per_job(f"trainyard_tokens_per_second{{{S}}}"), NAME),
            stacked=True,
            least=0,
        ),
        graph(
            PanelInfo(
                "Goodput",
                "percentunit",
                "Share of each job's wall time spent on new steps.",
                ("TrainyardRestartStorm",),
            ),
            Query(_goodput(), NAME),
            least=0,
        ),
        graph(
            PanelInfo(
                "Restarts",
                "none",
                "Restarts of each job since its creation. A staircase: it fails repeatedly.",
                ("TrainyardRestartStorm",),
            ),
            Query(_restarts(), NAME),
            least=0,
        ),
        graph(
            PanelInfo(
                "Failures of the last hour",
                "s",
                "Age of each job's last failure, by reason. The same reason on many jobs at once points to the"
                " cluster.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"time() - {reasons} < 3600", NAME + " {{reason}}"),
            least=0,
        ),
    ]
