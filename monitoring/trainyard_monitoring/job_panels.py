"""The panels of the job dashboard below its first row; each description says what to do about bad values."""

from typing import Final

from trainyard_monitoring.panels import Panel, PanelInfo, Query, graph, timeline
from trainyard_monitoring.timing import SLOW_RATIO

S: Final = 'namespace="$namespace", job_name="$job"'
"""Label matchers of the job."""
RATE: Final = "$__rate_interval"
CONDITION_COLORS: Final = {
    "Created": "text",
    "Running": "green",
    "Progressing": "green",
    "Restarting": "orange",
    "Degraded": "yellow",
    "Suspended": "blue",
    "Succeeded": "purple",
    "Failed": "red",
}

STEPS_PER_SECOND: Final = f"max(rate(trainyard_step_duration_seconds_count{{{S}}}[{RATE}]))"
"""A rate of trainyard_steps_total would count the checkpoint that an attempt starts from as steps."""


def learning() -> list[Panel]:
    """Return the panels on loss, gradient and evaluations."""
    return [
        graph(
            PanelInfo(
                "Loss",
                "none",
                "Training loss of single steps, and loss on held-out samples. If training falls while held-out rises,"
                " the model overfits. If both rise, lower the learning rate or restart from a checkpoint. On the right"
                " the epsilon of a private run: training ends when its budget is spent.",
                ("TrainyardLossDiverging",),
            ),
            Query(f"max(trainyard_loss{{{S}}})", "training"),
            Query(f"max(trainyard_eval_loss{{{S}}})", "held out"),
            Query(f"max(trainyard_privacy_epsilon{{{S}}})", "epsilon spent"),
            right={"epsilon spent": "none"},
        ),
        graph(
            PanelInfo(
                "Gradient norm and learning rate",
                "none",
                "Gradient norm before clipping. Growth by orders of magnitude precedes divergence: use a longer"
                " warm-up, a lower learning rate, or clipping.",
                ("TrainyardNonFiniteSteps",),
            ),
            Query(f"max(trainyard_grad_norm{{{S}}})", "gradient norm"),
            Query(f"max(trainyard_learning_rate{{{S}}})", "learning rate"),
            right={"learning rate": "sci"},
        ),
        graph(
            PanelInfo(
                "Evaluation",
                "none",
                "All metrics on held-out samples but the loss: accuracy and others on the left, perplexity on the"
                " right.",
            ),
            Query(
                'label_replace(max by (__name__) ({__name__=~"trainyard_eval_.+", __name__!~".+_(loss|perplexity)", '
                f'{S}}}), "metric", "$1", "__name__", "trainyard_eval_(.+)")',
                "{{metric}}",
            ),
            Query(f"max(trainyard_eval_perplexity{{{S}}})", "perplexity"),
            right={"perplexity": "short"},
        ),
    ]


def speed() -> list[Panel]:
    """Return the panels on throughput and the time of a step."""
    speed = f"max(trainyard_tokens_per_second{{{S}}})"
    per_token = f"max(trainyard_flops_total{{{S}}}) / max(trainyard_tokens_total{{{S}}})"
    seconds = f"max by (phase) (rate(trainyard_step_duration_seconds_sum{{{S}}}[{RATE}]))"
    return [
        graph(
            PanelInfo(
                "Throughput",
                "short",
                f"Tokens per second of all ranks, and the mean over an hour. Below {SLOW_RATIO:.0%} of the usual"
                " throughput for long: look at the phases of the step, then at slow ranks.",
                ("TrainyardThroughputDropped",),
                width=6,
            ),
            Query(speed, "tokens/s"),
            Query(f"max(avg_over_time(trainyard_tokens_per_second{{{S}}}[1h]))", "mean over 1 h"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Step time by phase",
                "s",
                "Mean seconds of one step on rank 0. data: waiting for input. passes: forward and backward with their"
                " communication, the useful part. update: includes waiting for the slowest rank. checkpoint,"
                " evaluation:"
                " do them less often. other: reports.",
                ("TrainyardThroughputDropped", "TrainyardStraggler"),
                width=6,
            ),
            Query(f"{seconds} / on () group_left () ({STEPS_PER_SECOND} > 0)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        graph(
            PanelInfo(
                "Computation and communication",
                "percentunit",
                "Parts of the last traced step of rank 0. overlap: both at the same time. communication: only that,"
                " including waiting for other ranks; if it is large, look for a slow rank, or use another layout or a"
                " larger batch. other: neither; data loading, or a device waiting for Python.",
                ("TrainyardThroughputDropped", "TrainyardStraggler"),
                width=6,
            ),
            Query(f"max by (part) (trainyard_step_part_ratio{{{S}}})", "{{part}}"),
            stacked=True,
            least=0,
        ),
        graph(
            PanelInfo(
                "Model FLOP/s and MFU",
                "flops",
                "Model FLOP/s, and their share of the devices' peak (MFU). Both fall with small micro-batches and with"
                " more ranks for the same batch.",
                width=6,
            ),
            Query(f"{speed} * ({per_token})", "model FLOP/s"),
            Query(f"max(trainyard_mfu_ratio{{{S}}})", "MFU"),
            right={"MFU": "percentunit"},
            least=0,
        ),
    ]


def time() -> list[Panel]:
    """Return the panels on the job's wall time and conditions."""
    conditions = {0: ("no", "transparent"), 1: ("yes", "blue")}
    return [
        graph(
            PanelInfo(
                "Wall time by part",
                "s",
                "The parts add up to the job's age. recovery: restarts and repeated steps; checkpoint more often, and"
                " fix the cause. startup: images, data, compilation.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"max by (part) (trainyard_job_goodput_seconds_total{{{S}}})", "{{part}}"),
            stacked=True,
            least=0,
        ),
        timeline(
            PanelInfo(
                "Conditions",
                "none",
                "Conditions of the job over time. Degraded: it runs, but with a problem that the message of the"
                " condition names.",
            ),
            Query(f"max by (condition) (trainyard_job_condition{{{S}}})", "{{condition}}"),
            names=conditions,
            colors=CONDITION_COLORS,
        ),
        graph(
            PanelInfo(
                "Waiting for workers",
                "s",
                "How long the job has been without all of its workers, although it should be running. Long: no free"
                " capacity, an image that cannot be pulled, or a volume that cannot be attached.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"max(trainyard_job_pending_seconds{{{S}}})", "pending"),
            least=0,
        ),
    ]


def bad_steps() -> list[Panel]:
    """Return the panels on skipped steps and rollbacks."""
    return [
        graph(
            PanelInfo(
                "Skipped steps",
                "none",
                "Counts of this attempt. NaN or Inf: an overflow, or a faulty device. Skipped: these and spikes. Many:"
                " look at spec.health.badSteps, the learning rate and the samples.",
                ("TrainyardNonFiniteSteps",),
                width=12,
            ),
            Query(f"max(trainyard_nonfinite_steps_total{{{S}}})", "NaN or Inf"),
            Query(f"max(trainyard_skipped_steps_total{{{S}}})", "skipped"),
            Query(f"max(trainyard_rollbacks_total{{{S}}})", "rollbacks"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Steps, restarts and rollbacks",
                "none",
                "Steps done, and the steps of the newest checkpoint, of the checkpoint this attempt resumed from, and"
                " of the last skipped step. A drop is a restart or a rollback.",
                ("TrainyardRestartStorm",),
                width=12,
            ),
            Query(f"max(trainyard_steps_total{{{S}}})", "done"),
            Query(f"max(trainyard_checkpoint_step{{{S}}})", "saved"),
            Query(f"max(trainyard_resumed_step{{{S}}})", "resumed from"),
            Query(f"max(trainyard_last_skipped_step{{{S}}})", "last skipped"),
            least=0,
        ),
    ]


def checkpoints() -> list[Panel]:
    """Return the panels on checkpoints and their cost."""
    unsaved = f"max(trainyard_steps_total{{{S}}} - trainyard_checkpoint_step{{{S}}})"
    pace = (
        f"sum(max by (phase) (trainyard_step_duration_seconds_sum{{{S}}}))"
        f" / max(trainyard_step_duration_seconds_count{{{S}}})"
    )
    return [
        graph(
            PanelInfo(
                "Unsaved training",
                "s",
                "Unsaved steps in seconds of training: what a crash would lose. It falls to near zero at each"
                " checkpoint.",
                ("TrainyardCheckpointStale",),
                width=6,
            ),
            Query(f"{unsaved} * ({pace})", "unsaved"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Duration and size",
                "s",
                "Duration and size of the newest checkpoint. If it takes longer at the same size, the storage is"
                " slower.",
                ("TrainyardCheckpointStale",),
                width=6,
            ),
            Query(f"max(trainyard_checkpoint_duration_seconds{{{S}}})", "duration"),
            Query(f"max(trainyard_checkpoint_bytes{{{S}}})", "size"),
            right={"size": "bytes"},
            least=0,
        ),
        graph(
            PanelInfo(
                "Time waiting for checkpoints",
                "percentunit",
                "Share of the wall time. Above 5%: save less often, with async: true, or to faster storage.",
                width=6,
            ),
            Query(f"max(rate(trainyard_checkpoint_stall_seconds_total{{{S}}}[{RATE}]))", "waiting"),
            levels=((None, "green"), (0.05, "orange")),
            least=0,
        ),
        graph(
            PanelInfo(
                "Failed and damaged",
                "none",
                "Checkpoints that this attempt failed to write, and checkpoints found damaged when it started. If there"
                " are any, check the volume.",
                ("TrainyardCheckpointFailing",),
                width=6,
            ),
            Query(f"max(trainyard_checkpoint_failures_total{{{S}}})", "failed"),
            Query(f"max(trainyard_checkpoints_damaged{{{S}}})", "damaged"),
            least=0,
        ),
    ]


def ranks() -> list[Panel]:
    """Return the panels on single ranks and pods."""
    return [
        graph(
            PanelInfo(
                "Computation by rank",
                "s",
                "Seconds for the same small computation on each rank (with spec.health.straggler). A line above the"
                " others is a slow device.",
                ("TrainyardStraggler",),
            ),
            Query(f"max by (rank) (trainyard_rank_compute_seconds{{{S}}})", "rank {{rank}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Slow ranks",
                "none",
                "Time of a straggler divided by that of the median rank. No line: no straggler.",
                ("TrainyardStraggler",),
            ),
            Query(f"max by (rank) (trainyard_straggler_ratio{{{S}}})", "rank {{rank}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Memory by rank",
                "bytes",
                "resident: host memory. allocated, reserved, peak: torch's allocator on a GPU. If resident grows for"
                " hours, memory leaks; near the limit the OOM killer ends the rank.",
            ),
            Query(f"max by (rank, kind) (trainyard_memory_bytes{{{S}}})", "rank {{rank}} {{kind}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Load of experts",
                "none",
                "Of a moe: load of the most loaded expert of a layer, divided by the mean. 1: even. A layer that rises"
                " leaves most experts untrained, and its ranks wait for the one with the loaded expert; raise"
                " spec.trainer.model.balanceLossWeight.",
            ),
            Query(f"max by (layer) (trainyard_expert_load_ratio{{{S}}})", "layer {{layer}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Last step by pod",
                "s",
                "Seconds since each pod finished a step. If all grow: a hang, or an evaluation. If one grows: that"
                " pod.",
                ("TrainyardJobStalled",),
            ),
            Query(f"time() - max by (pod) (trainyard_last_step_timestamp_seconds{{{S}}})", "{{pod}}"),
            least=0,
        ),
        graph(
            PanelInfo(
                "Pods by state",
                "none",
                "Pods of the attempt, and the workers it needs. If pods are pending, see their events (kubectl"
                " describe).",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"max by (state) (trainyard_job_pods{{{S}}}) > 0", "{{state}}"),
            Query(f"max(trainyard_job_workers_desired{{{S}}})", "needed"),
            least=0,
        ),
    ]
