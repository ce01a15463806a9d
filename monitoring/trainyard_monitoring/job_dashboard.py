"""One job: is it healthy, how fast is it, what does it lose time on, and what is to be done now?"""

from typing import Any, Final

from trainyard_monitoring import job_panels
from trainyard_monitoring.frame import PHASES, Row, build, label_variable, marks, phase, source_variable
from trainyard_monitoring.job_panels import STEPS_PER_SECOND, S
from trainyard_monitoring.panels import About, Panel, Query, figure, page
from trainyard_monitoring.timing import RUNBOOKS

UID: Final = "trainyard-job"


def job_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    rows = [
        Row("Now", [*_state(), *_progress(), _help()]),
        Row("Learning", job_panels.learning()),
        Row("Speed: where a step goes", job_panels.speed()),
        Row("Where the time goes", job_panels.time()),
        Row("Bad steps", job_panels.bad_steps()),
        Row("Checkpoints", job_panels.checkpoints()),
        Row("Ranks and pods", job_panels.ranks()),
    ]
    variables = [
        source_variable(),
        label_variable("namespace", "Namespace", "label_values(trainyard_job_condition, namespace)"),
        label_variable("job", "Job", 'label_values(trainyard_job_condition{namespace="$namespace"}, job_name)'),
    ]
    about = "One TrainingJob: state, learning, speed, lost time, checkpoints, ranks. Red marks: failures; blue: saves."
    return build(UID, "Trainyard / Job", about, variables, rows, marks(S))


def _state() -> list[Panel]:
    alerts = f'ALERTS{{{S}, alertstate="firing"}}'
    parts = f"sum(max by (part) (trainyard_job_goodput_seconds_total{{{S}}}))"
    productive = f'max(trainyard_job_goodput_seconds_total{{{S}, part="productive"}})'
    return [
        figure(
            About(
                "Phase",
                "none",
                "Pending for long: see Pods below. Failed: read the job's events.",
                ("TrainyardJobPendingTooLong", "TrainyardJobFailed"),
            ),
            Query(phase(S)),
            names=PHASES,
            absent="no such job",
        ),
        figure(
            About("Firing alerts", "none", "Alerts of Prometheus on this job. Each has a runbook with what to do."),
            Query(alerts, "{{alertname}}"),
            levels=((None, "red"),),
            absent="none",
            instant=True,
            show_name=True,
        ),
        figure(
            About(
                "Goodput",
                "percentunit",
                "Share of the job's wall time in which new steps were made. Low: see Where the time goes.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"{productive} / {parts}"),
            levels=((None, "red"), (0.5, "orange"), (0.9, "green")),
            decimals=1,
        ),
        figure(
            About(
                "Restarts",
                "none",
                "Of them, some count against restartPolicy.limit and some (evictions, ...) do not."
                " Any: the red marks say when and why.",
                ("TrainyardRestartStorm",),
            ),
            Query(f'max(trainyard_job_restarts_total{{{S}, counted="true"}})', "counted"),
            Query(f'max(trainyard_job_restarts_total{{{S}, counted="false"}})', "free"),
            levels=((None, "green"), (1, "orange"), (3, "red")),
        ),
        figure(
            About(
                "Last checkpoint",
                "s",
                "Age of the newest checkpoint: what a crash would lose at most.",
                ("TrainyardCheckpointStale",),
            ),
            Query(f"time() - max(trainyard_checkpoint_timestamp_seconds{{{S}}})"),
            absent="none in this attempt",
            decimals=0,
        ),
        figure(
            About("Attempt", "none", "Number of the current attempt: 1 + restarts + resumptions."),
            Query(f"max(trainyard_job_attempt{{{S}}})"),
        ),
    ]


def _progress() -> list[Panel]:
    left = f"max(trainyard_planned_steps{{{S}}}) - max(trainyard_steps_total{{{S}}})"
    return [
        figure(
            About(
                "Step",
                "none",
                "Steps done, of those that are planned. Not growing while Running: the job hangs.",
                ("TrainyardJobStalled",),
            ),
            Query(f"max(trainyard_steps_total{{{S}}})", "done"),
            Query(f"max(trainyard_planned_steps{{{S}}})", "planned"),
        ),
        figure(
            About("Time left", "s", "Steps that are left, at the speed of now. No number: no steps are being made."),
            Query(f"({left}) / ({STEPS_PER_SECOND} > 0)"),
            absent="no steps now",
            decimals=0,
        ),
        figure(
            About(
                "Loss",
                "none",
                "Of the last report, in nats per token. Rising: see Learning.",
                ("TrainyardLossDiverging",),
            ),
            Query(f"max(trainyard_loss{{{S}}})"),
            decimals=4,
        ),
        figure(
            About(
                "Tokens/s",
                "short",
                "Of all ranks, at the last report. Low: see Speed.",
                ("TrainyardThroughputDropped",),
            ),
            Query(f"max(trainyard_tokens_per_second{{{S}}})"),
            decimals=1,
        ),
        figure(
            About(
                "MFU",
                "percentunit",
                "Share of the devices' peak FLOP/s that the model uses. Below 20% on a GPU: look for"
                " waits for data, small micro-batches, slow communication.",
            ),
            Query(f"max(trainyard_mfu_ratio{{{S}}})"),
            levels=((None, "red"), (0.2, "orange"), (0.35, "green")),
            decimals=1,
            absent="peak not known",
        ),
        figure(
            About("Epoch", "none", "How often the training has gone through its samples."),
            Query(f"max(trainyard_epoch{{{S}}})"),
            decimals=2,
        ),
    ]


def _help() -> Panel:
    lines = [
        ("Phase is Pending", "TrainyardJobPendingTooLong", "Pods, then `kubectl describe tj $job -n $namespace`"),
        (
            "Step stands still",
            "TrainyardJobStalled",
            "Last step by pod: one pod behind the others is the one to look at",
        ),
        ("It is slow", "TrainyardThroughputDropped", "Step time: data, checkpoint and update should be thin"),
        (
            "Restarts",
            "TrainyardRestartStorm",
            "`kubectl get tj $job -n $namespace -o jsonpath='{.status.lastFailure}'`",
        ),
        ("Loss rises", "TrainyardLossDiverging", "Gradient norm and bad steps before it"),
    ]
    table = "| You see | Look at | Runbook |\n|---|---|---|\n" + "\n".join(
        f"| {sight} | {place} | {RUNBOOKS}/{alert}.md |" for sight, alert, place in lines
    )
    return page("What to do now", "From what looks bad to what to do.", table, height=7)
