"""All jobs: which ones need somebody, and what the fleet is worth."""

from typing import Any, Final

from trainyard_monitoring.frame import PHASES, Row, build, label_variable, phase, source_variable
from trainyard_monitoring.job_dashboard import UID as JOB_UID
from trainyard_monitoring.panels import GOOD_AT_ZERO, About, Column, Panel, Query, figure, graph, grid
from trainyard_monitoring.promql import per_job

S: Final = 'namespace=~"$namespace"'
NAME: Final = "{{namespace}}/{{job_name}}"
_WORKERS: Final = per_job(f'trainyard_job_pods{{{S}, state="Running"}}')


def fleet_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    rows = [
        Row("Now", _now()),
        Row("Jobs", [_jobs()]),
        Row("Over time", _history()),
    ]
    namespaces = "label_values(trainyard_job_condition, namespace)"
    variables = [source_variable(), label_variable("namespace", "Namespace", namespaces, several=True)]
    about = "All TrainingJobs: phases, alerts, speed, goodput, restarts, waiting."
    return build("trainyard-fleet", "Trainyard / Fleet", about, variables, rows)


def _count(condition: str) -> str:
    true = f'trainyard_job_condition{{{S}, condition="{condition}"}} == 1'
    return f"count({per_job(true)}) or vector(0)"


def _now() -> list[Panel]:
    pending = per_job(f"trainyard_job_pending_seconds{{{S}}} > 0")
    alerts = f'count(ALERTS{{{S}, alertname=~"Trainyard.+", alertstate="firing"}}) or vector(0)'
    return [
        figure(About("Running", "none", "Jobs all of whose workers run."), Query(_count("Running"))),
        figure(
            About(
                "Waiting",
                "none",
                "Jobs that should run and have not all of their workers. Some for long: no room.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"count({pending}) or vector(0)"),
            levels=GOOD_AT_ZERO,
        ),
        figure(
            About("Degraded", "none", "Jobs that run, but not well; the message of the condition says why."),
            Query(_count("Degraded")),
            levels=GOOD_AT_ZERO,
        ),
        figure(
            About("Failed", "none", "Jobs that have failed and are not deleted yet.", ("TrainyardJobFailed",)),
            Query(_count("Failed")),
            levels=GOOD_AT_ZERO,
        ),
        figure(
            About("Workers", "none", "Pods whose worker runs, of all jobs."),
            Query(f"sum({_WORKERS}) or vector(0)"),
        ),
        figure(
            About(
                "Firing alerts",
                "none",
                "On jobs in these namespaces. The table says which job; its dashboard, which alert.",
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
    about = About(
        "Jobs",
        "none",
        "Click a job for its own dashboard. Look first at jobs with alerts, then at low goodput.",
        ("TrainyardJobFailed", "TrainyardRestartStorm"),
        width=24,
        height=10,
    )
    target = "?var-datasource=${datasource}&var-namespace=${__data.fields.Namespace}&var-job=${__value.text}"
    return grid(about, {"namespace": "Namespace", "job_name": "Job"}, columns, f"/d/{JOB_UID}{target}")


def _history() -> list[Panel]:
    reasons = f"max by (namespace, job_name, reason) (trainyard_job_last_failure_timestamp_seconds{{{S}}})"
    return [
        graph(
            About("Jobs by phase", "none", "Of all namespaces that the operator watches."),
            Query("sum by (phase) (trainyard_operator_jobs)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        graph(
            About(
                "Workers: needed and running",
                "none",
                "A gap that stays: the cluster is too small, or a job does not fit.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"sum({per_job(f'trainyard_job_workers_desired{{{S}}}')})", "needed"),
            Query(f"sum({_WORKERS})", "running"),
            least=0,
        ),
        graph(
            About(
                "Tokens per second",
                "short",
                "By job. A line that drops is a job to look at.",
                ("TrainyardThroughputDropped",),
            ),
            Query(per_job(f"trainyard_tokens_per_second{{{S}}}"), NAME),
            stacked=True,
            least=0,
        ),
        graph(
            About(
                "Goodput",
                "percentunit",
                "Share of each job's wall time in which new steps were made.",
                ("TrainyardRestartStorm",),
            ),
            Query(_goodput(), NAME),
            least=0,
        ),
        graph(
            About(
                "Restarts",
                "none",
                "Of each job, ever. A staircase: something fails again and again.",
                ("TrainyardRestartStorm",),
            ),
            Query(_restarts(), NAME),
            least=0,
        ),
        graph(
            About(
                "Failures of the last hour",
                "s",
                "Age of each job's last failure, by reason. One reason on many jobs at once"
                " is the cluster's, not the jobs'.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"time() - {reasons} < 3600", NAME + " {{reason}}"),
            least=0,
        ),
    ]
