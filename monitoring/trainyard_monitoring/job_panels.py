"""The panels of the job dashboard below its first row: over time, each with what to do when it looks bad."""

from typing import Final

from trainyard_monitoring.panels import About, Panel, Query, graph, timeline
from trainyard_monitoring.timing import SLOW_RATIO

S: Final = 'namespace="$namespace", job_name="$job"'
"""Selects the job."""
RATE: Final = "$__rate_interval"

STEPS_PER_SECOND: Final = f"max(rate(trainyard_step_duration_seconds_count{{{S}}}[{RATE}]))"
"""Not of trainyard_steps_total, which begins at the checkpoint in each attempt: a rate would take that for steps."""


def learning() -> list[Panel]:
    """What the run learns."""
    return [
        graph(
            About(
                "Loss",
                "none",
                "Training loss of single steps, and loss on held-out samples. Training falls and the held-out"
                " one rises: overfitting. Both rise: lower the learning rate, or go back to a checkpoint.",
                ("TrainyardLossDiverging",),
            ),
            Query(f"max(trainyard_loss{{{S}}})", "training"),
            Query(f"max(trainyard_eval_loss{{{S}}})", "held out"),
        ),
        graph(
            About(
                "Gradient norm and learning rate",
                "none",
                "Norm before clipping. Growing by orders of magnitude comes"
                " before divergence: a longer warm-up, a lower rate, clipping.",
                ("TrainyardNonFiniteSteps",),
            ),
            Query(f"max(trainyard_grad_norm{{{S}}})", "gradient norm"),
            Query(f"max(trainyard_learning_rate{{{S}}})", "learning rate"),
            right={"learning rate": "sci"},
        ),
        graph(
            About("Evaluation", "none", "All other figures on held-out samples: perplexity, accuracy and so on."),
            Query(
                f'max by (__name__) ({{__name__=~"trainyard_eval_.+", __name__!="trainyard_eval_loss", {S}}})',
                "{{__name__}}",
            ),
        ),
    ]


def speed() -> list[Panel]:
    """How fast it is, and what a step goes into."""
    speed = f"max(trainyard_tokens_per_second{{{S}}})"
    per_token = f"max(trainyard_flops_total{{{S}}}) / max(trainyard_tokens_total{{{S}}})"
    seconds = f"max by (phase) (rate(trainyard_step_duration_seconds_sum{{{S}}}[{RATE}]))"
    return [
        graph(
            About(
                "Throughput",
                "short",
                f"Tokens per second of all ranks, and their mean over an hour. Below {SLOW_RATIO:.0%} of"
                " what is usual for long: see the step's phases, then slow ranks.",
                ("TrainyardThroughputDropped",),
                width=6,
            ),
            Query(speed, "tokens/s"),
            Query(f"max(avg_over_time(trainyard_tokens_per_second{{{S}}}[1h]))", "mean of an hour"),
            least=0,
        ),
        graph(
            About(
                "Step time by phase",
                "s",
                "Mean seconds of one step on rank 0. data: the input is too slow. passes: forward,"
                " backward and their communication, what it is for. update waits for the slowest rank. checkpoint,"
                " evaluation: do it less often. other: reports.",
                ("TrainyardThroughputDropped", "TrainyardStraggler"),
                width=6,
            ),
            Query(f"{seconds} / on () group_left () ({STEPS_PER_SECOND} > 0)", "{{phase}}"),
            stacked=True,
            least=0,
        ),
        graph(
            About(
                "Computation and communication",
                "percentunit",
                "What a step of rank 0 that was traced consists of. overlap: both at once. communication: nothing but"
                " that, and waiting for other ranks; much of it: a slow rank, another layout, a larger batch. other:"
                " neither; data, or a device that waits for Python.",
                ("TrainyardThroughputDropped", "TrainyardStraggler"),
                width=6,
            ),
            Query(f"max by (part) (trainyard_step_part_ratio{{{S}}})", "{{part}}"),
            stacked=True,
            least=0,
        ),
        graph(
            About(
                "Model FLOP/s and MFU",
                "flops",
                "Floating-point operations of the model per second, and their share of the"
                " devices' peak. It falls with small micro-batches and with more ranks for the same batch.",
                width=6,
            ),
            Query(f"{speed} * ({per_token})", "model FLOP/s"),
            Query(f"max(trainyard_mfu_ratio{{{S}}})", "MFU"),
            right={"MFU": "percentunit"},
            least=0,
        ),
    ]


def time() -> list[Panel]:
    """What the time of the job went into."""
    conditions = {0: ("no", "transparent"), 1: ("yes", "blue")}
    return [
        graph(
            About(
                "Wall time by what it went into",
                "s",
                "Adds up to the job's age. recovery: restarts and steps done twice:"
                " checkpoint more often, mend the cause. startup: images, data, compilation.",
                ("TrainyardRestartStorm",),
            ),
            Query(f"max by (part) (trainyard_job_goodput_seconds_total{{{S}}})", "{{part}}"),
            stacked=True,
            least=0,
        ),
        timeline(
            About(
                "Conditions",
                "none",
                "What was true of the job, and when. Degraded: it runs, but something is wrong; the"
                " condition's message says what.",
            ),
            Query(f"max by (condition) (trainyard_job_condition{{{S}}})", "{{condition}}"),
            names=conditions,
        ),
        graph(
            About(
                "Waiting for workers",
                "s",
                "How long the job, though wanted, has not had all of its workers. Long: no room,"
                " an image that cannot be pulled, a volume that does not attach.",
                ("TrainyardJobPendingTooLong",),
            ),
            Query(f"max(trainyard_job_pending_seconds{{{S}}})", "pending"),
            least=0,
        ),
    ]


def bad_steps() -> list[Panel]:
    """Steps that changed nothing, and ways back."""
    return [
        graph(
            About(
                "Steps that changed nothing",
                "none",
                "Counts of this attempt. Not finite: overflow, or a processor that"
                " errs. Skipped: those, and spikes. Many: spec.health.badSteps, learning rate, samples.",
                ("TrainyardNonFiniteSteps",),
                width=12,
            ),
            Query(f"max(trainyard_nonfinite_steps_total{{{S}}})", "not finite"),
            Query(f"max(trainyard_skipped_steps_total{{{S}}})", "skipped"),
            Query(f"max(trainyard_rollbacks_total{{{S}}})", "returns to a checkpoint"),
            least=0,
        ),
        graph(
            About(
                "Steps and where they went back",
                "none",
                "Steps done, the newest checkpoint's, the one that the attempt"
                " continued from, the last one that changed nothing. A drop: a restart or a return to a checkpoint.",
                ("TrainyardRestartStorm",),
                width=12,
            ),
            Query(f"max(trainyard_steps_total{{{S}}})", "done"),
            Query(f"max(trainyard_checkpoint_step{{{S}}})", "saved"),
            Query(f"max(trainyard_resumed_step{{{S}}})", "continued from"),
            Query(f"max(trainyard_last_skipped_step{{{S}}})", "last that changed nothing"),
            least=0,
        ),
    ]


def checkpoints() -> list[Panel]:
    """What is saved, and what that costs."""
    unsaved = f"max(trainyard_steps_total{{{S}}} - trainyard_checkpoint_step{{{S}}})"
    pace = (
        f"sum(max by (phase) (trainyard_step_duration_seconds_sum{{{S}}}))"
        f" / max(trainyard_step_duration_seconds_count{{{S}}})"
    )
    return [
        graph(
            About(
                "Training at risk",
                "s",
                "Unsaved steps in seconds: what a crash would lose. It should fall to near zero at each checkpoint.",
                ("TrainyardCheckpointStale",),
                width=6,
            ),
            Query(f"{unsaved} * ({pace})", "at risk"),
            least=0,
        ),
        graph(
            About(
                "Duration and size",
                "s",
                "Of the newest checkpoint. Slower at the same size: the storage.",
                ("TrainyardCheckpointStale",),
                width=6,
            ),
            Query(f"max(trainyard_checkpoint_duration_seconds{{{S}}})", "duration"),
            Query(f"max(trainyard_checkpoint_bytes{{{S}}})", "size"),
            right={"size": "bytes"},
            least=0,
        ),
        graph(
            About(
                "Time waiting for checkpoints",
                "percentunit",
                "Share of the time. Above 5%: save less often, or with async: true, or to faster storage.",
                width=6,
            ),
            Query(f"max(rate(trainyard_checkpoint_stall_seconds_total{{{S}}}[{RATE}]))", "waiting"),
            levels=((None, "green"), (0.05, "orange")),
            least=0,
        ),
        graph(
            About(
                "Failed and damaged",
                "none",
                "Checkpoints of this attempt that could not be written, and such that were found"
                " damaged when it began. Any: look at the volume.",
                ("TrainyardCheckpointFailing",),
                width=6,
            ),
            Query(f"max(trainyard_checkpoint_failures_total{{{S}}})", "not written"),
            Query(f"max(trainyard_checkpoints_damaged{{{S}}})", "damaged"),
            least=0,
        ),
    ]


def ranks() -> list[Panel]:
    """Single ranks and pods."""
    return [
        graph(
            About(
                "Computation by rank",
                "s",
                "Seconds for one and the same small computation; only with spec.health.straggler."
                " One line above the others is a slow device.",
                ("TrainyardStraggler",),
            ),
            Query(f"max by (rank) (trainyard_rank_compute_seconds{{{S}}})", "rank {{rank}}"),
            least=0,
        ),
        graph(
            About(
                "Slow ranks",
                "none",
                "How many times as long as the median rank a straggler takes. No line: no straggler.",
                ("TrainyardStraggler",),
            ),
            Query(f"max by (rank) (trainyard_straggler_ratio{{{S}}})", "rank {{rank}}"),
            least=0,
        ),
        graph(
            About(
                "Memory by rank",
                "bytes",
                "resident: on the host. allocated, reserved, peak: of torch on a GPU. resident"
                " growing for hours leaks; near the limit a rank will be killed.",
            ),
            Query(f"max by (rank, kind) (trainyard_memory_bytes{{{S}}})", "rank {{rank}} {{kind}}"),
            least=0,
        ),
        graph(
            About(
                "Last step by pod",
                "s",
                "Seconds since each pod finished a step. All grow: a hang, or an evaluation. One"
                " grows alone: that pod.",
                ("TrainyardJobStalled",),
                width=12,
            ),
            Query(f"time() - max by (pod) (trainyard_last_step_timestamp_seconds{{{S}}})", "{{pod}}"),
            least=0,
        ),
        graph(
            About(
                "Pods by state",
                "none",
                "And the workers that the attempt needs. Pending pods: kubectl describe them.",
                ("TrainyardJobPendingTooLong",),
                width=12,
            ),
            Query(f"max by (state) (trainyard_job_pods{{{S}}})", "{{state}}"),
            Query(f"max(trainyard_job_workers_desired{{{S}}})", "needed"),
            least=0,
        ),
    ]
