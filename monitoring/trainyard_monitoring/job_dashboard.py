"""The dashboard of one job: health, speed, lost time, and what to do."""

from typing import Any, Final

from trainyard_monitoring import job_panels
from trainyard_monitoring.frame import PHASES, Row, build, label_variable, phase, source_variable, timed_annotations
from trainyard_monitoring.job_panels import STEPS_PER_SECOND, S
from trainyard_monitoring.panels import Panel, PanelInfo, Query, stat_panel, text_panel
from trainyard_monitoring.timing import RUNBOOKS

UID: Final = "trainyard-job"


def job_dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    rows = [
        Row("Now", [*_state(), *_progress(), _help()]),
        Row("Learning", job_panels.learning()),
        Row("Speed and time of a step", job_panels.speed()),
        Row("Wall time", job_panels.time()),
        Row("Bad steps", job_panels.bad_steps()),
        Row("Checkpoints", job_panels.checkpoints()),
        Row("Ranks and pods", job_panels.ranks()),
    ]
    variables = [
        source_variable(),
        label_variable("namespace", "Namespace", "label_values(trainyard_job_condition, namespace)"),
        label_variable("job", "Job", 'label_values(trainyard_job_condition{namespace="$namespace"}, job_name)'),
    ]
    description = "One TrainingJob: state, learning, speed, lost time, checkpoints, ranks. Red: failures; blue: saves."
    return build(UID, "Trainyard / Job", description, variables, rows, timed_annotations(S))


def _state() -> list[Panel]:
    alerts = f'ALERTS{{{S}, alertstate="firing"}}'
    parts = f"sum(max by (part) (trainyard_job_goodput_seconds_total{{{S}}}))"
    productive = f'max(trainyard_job_goodput_seconds_total{{{S}, part="productive"}})'
    return [
        stat_panel(
            PanelInfo(
                "Phase",
                "none",
                "Pending for long: see Pods by state. Failed: see the job's events.",
                ("TrainyardJobPendingTooLong", "TrainyardJobFailed"),
            ),
            Query(phase(S)),
            names=PHASES,
            absent="no such job",
        ),
        stat_panel(
            PanelInfo("Firing alerts", "none", "Firing alerts on this job. The runbook of each says what to do."),
            Query(alerts, "{{alertname}}"),
            levels=((None, "red"),),
            absent="none",
            instant=True,
            show_name=True,
        ),
        stat_panel(
            PanelInfo(
                "Goodput",
                "percentunit",
                "Share of the job's wall time spent on new steps. Low: see Wall time.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"{productive} / {parts}"),
            levels=((None, "red"), (0.5, "orange"), (0.9, "green")),
            decimals=1,
        ),
        stat_panel(
            PanelInfo(
                "Restarts",
                "none",
                "counted: restarts that count against restartPolicy.maxRestarts; not counted: evictions and so on."
                " The red"
                " annotations show when and why.",
                ("TrainyardRestartStorm",),
            ),
            Query(f'max(trainyard_job_restarts_total{{{S}, counted="true"}})', "counted"),
            Query(f'max(trainyard_job_restarts_total{{{S}, counted="false"}})', "not counted"),
            levels=((None, "green"), (1, "orange"), (3, "red")),
        ),
        stat_panel(
            PanelInfo(
                "Last checkpoint",
                "s",
                "Age of the newest checkpoint: the most that a crash would lose.",
                ("TrainyardCheckpointStale",),
            ),
            Query(f"time() - max(trainyard_checkpoint_timestamp_seconds{{{S}}})"),
            absent="none in this attempt",
            decimals=0,
        ),
        stat_panel(
            PanelInfo("Attempt", "none", "Number of the current attempt: 1 + restarts + resumes."),
            Query(f"max(trainyard_job_attempt{{{S}}})"),
        ),
    ]


def _progress() -> list[Panel]:
    left = f"max(trainyard_planned_steps{{{S}}}) - max(trainyard_steps_total{{{S}}})"
    return [
        stat_panel(
            PanelInfo(
                "Step",
                "none",
                "Steps done and planned. If it does not grow while the job is Running, the job hangs.",
                ("TrainyardJobStalled",),
            ),
            Query(f"max(trainyard_steps_total{{{S}}})", "done"),
            Query(f"max(trainyard_planned_steps{{{S}}})", "planned"),
        ),
        stat_panel(
            PanelInfo("ETA", "s", "Time for the remaining steps at the current speed; absent while no steps are done."),
            Query(f"({left}) / ({STEPS_PER_SECOND} > 0)"),
            absent="no steps",
            decimals=0,
        ),
        stat_panel(
            PanelInfo(
                "Loss",
                "none",
                "Training loss of the last report, in nats per token. Rising: see Learning.",
                ("TrainyardLossDiverging",),
            ),
            Query(f"max(trainyard_loss{{{S}}})"),
            decimals=4,
        ),
        stat_panel(
            PanelInfo(
                "Tokens/s",
                "short",
                "Tokens per second of all ranks, at the last report. Low: see Speed and time of a step.",
                ("TrainyardThroughputDropped",),
            ),
            Query(f"max(trainyard_tokens_per_second{{{S}}})"),
            decimals=1,
        ),
        stat_panel(
            PanelInfo(
                "MFU",
                "percentunit",
                "Model FLOPs utilization: share of the devices' peak FLOP/s. Below 20% on a GPU: look for waiting for"
                " data, small micro-batches and slow communication.",
            ),
            Query(f"max(trainyard_mfu_ratio{{{S}}})"),
            levels=((None, "red"), (0.2, "orange"), (0.35, "green")),
            decimals=1,
            absent="peak unknown",
        ),
        stat_panel(
            PanelInfo("Epoch", "none", "Passes over the training samples."),
            Query(f"max(trainyard_epoch{{{S}}})"),
            decimals=2,
        ),
    ]


def _help() -> Panel:
    lines = [
        ("Phase is Pending", "TrainyardJobPendingTooLong", "Pods, then `kubectl describe tj $job -n $namespace`"),
        (
            "Step does not grow",
            "TrainyardJobStalled",
            "Last step by pod: a pod that is behind the others",
        ),
        (
            "Low throughput",
            "TrainyardThroughputDropped",
            "Step time by phase: data, checkpoint and update should be small",
        ),
        (
            "Restarts",
            "TrainyardRestartStorm",
            "`kubectl get tj $job -n $namespace -o jsonpath='{.status.lastFailure}'`",
        ),
        ("Loss rises", "TrainyardLossDiverging", "Gradient norm and skipped steps before the rise"),
    ]
    table = "| Symptom | Look at | Runbook |\n|---|---|---|\n" + "\n".join(
        f"| {symptom} | {place} | {RUNBOOKS}/{alert}.md |" for symptom, alert, place in lines
    )
    return text_panel("Troubleshooting", "Symptoms, where to look, and the runbook.", table, height=7)
