"""Names shared by operator, trainer and user programs: labels, environment variables, files, exit codes, metrics."""

from typing import Final

GROUP: Final = "trainyard.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TrainingJob"
PLURAL: Final = "trainingjobs"

# Labels of all children of a job.
LABEL_JOB: Final = f"{GROUP}/job-name"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_INDEX: Final = f"{GROUP}/index"
LABEL_REPLICAS: Final = f"{GROUP}/replicas"
LABEL_ROLE: Final = f"{GROUP}/role"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "trainyard"

# Annotations by which Prometheus and the operator find the metrics page of a pod.
ANNOTATION_SCRAPE: Final = "prometheus.io/scrape"
ANNOTATION_PORT: Final = "prometheus.io/port"
ANNOTATION_PATH: Final = "prometheus.io/path"

# Containers, roles, ports and files of a pod.
WORKER_CONTAINER: Final = "worker"
ROLE_WORKER: Final = "worker"
ROLE_SERVER: Final = "server"
ROLE_PLACEHOLDER: Final = "placeholder"
"""Role of a pod that detects and holds capacity for one more worker (spec.elastic)."""
RENDEZVOUS_PORT: Final = 29500
METRICS_PORT: Final = 9400
LAUNCHER_PORT_NAME: Final = "launcher"
CONFIG_FOLDER: Final = "/etc/trainyard"
CONFIG_FILE: Final = "config.json"
LAUNCHER_FILE: Final = "launcher.py"
"""Program in `CONFIG_FOLDER` that starts a user's command."""
LAUNCHER_FILES: Final = (LAUNCHER_FILE, "launcher_port.py", "launcher_protocol.py")
"""Files of `trainyard.protocol` that the launcher program consists of."""
CHECKPOINT_MOUNT: Final = "/checkpoints"

ENV_CONFIG: Final = "TRAINYARD_CONFIG"
"""Path of the resolved configuration (JSON, `trainyard.config.RunConfig`)."""
ENV_JOB: Final = "TRAINYARD_JOB_NAME"
ENV_NAMESPACE: Final = "TRAINYARD_NAMESPACE"
ENV_METRICS_PORT: Final = "TRAINYARD_METRICS_PORT"
ENV_LOG_LEVEL: Final = "TRAINYARD_LOG_LEVEL"
"""Log level of the operator and of rank 0 of the trainer: debug, info (the default) or warning. Other ranks log
warnings only."""
ENV_CACHE: Final = "TRAINYARD_CACHE"
"""Folder in which the trainer keeps prepared data. Defaults to a folder below the one for temporary files."""

ENV_PEAK_FLOPS: Final = "TRAINYARD_PEAK_FLOPS"
"""Peak floating-point operations per second of the device of one rank, for devices that the trainer does not know."""
ENV_STEP_SAMPLES: Final = "TRAINYARD_STEP_SAMPLES"
"""Whether rank 0 occasionally traces a step to measure its share of communication: on (the default) or off."""
ENV_CHECKPOINTS: Final = "TRAINYARD_CHECKPOINTS"
"""Folder for the job's checkpoints. It is also set for user programs."""
ENV_GRACE: Final = "TRAINYARD_GRACE_SECONDS"
"""Time in seconds from SIGTERM until the pod is killed."""

TOKEN_KEY: Final = "token"
"""Key of the launcher's token in the job's Secret."""

EXIT_INVALID_CONFIG: Final = 78
"""Exit code of a worker whose configuration is invalid (EX_CONFIG of sysexits.h): the job fails without a restart."""
EXIT_HANG: Final = 79
"""Exit code of a worker that was ended because a rank missed its heartbeats (not a code of sysexits.h)."""
EXIT_BAD_STEPS: Final = 80
"""Exit code of a worker that gave up after too many bad steps (not a code of sysexits.h)."""

# Metrics of a worker. The operator reads those of rank 0 into status.progress.
METRIC_ATTEMPT: Final = "trainyard_attempt"
METRIC_STEP: Final = "trainyard_steps_total"
METRIC_TOTAL_STEPS: Final = "trainyard_planned_steps"
METRIC_TOKENS: Final = "trainyard_tokens_total"
METRIC_SAMPLES: Final = "trainyard_samples_total"
METRIC_FLOPS: Final = "trainyard_flops_total"
METRIC_MFU: Final = "trainyard_mfu_ratio"
METRIC_EPOCH: Final = "trainyard_epoch"
METRIC_LOSS: Final = "trainyard_loss"
METRIC_LEARNING_RATE: Final = "trainyard_learning_rate"
METRIC_GRAD_NORM: Final = "trainyard_grad_norm"
METRIC_TOKENS_PER_SECOND: Final = "trainyard_tokens_per_second"
METRIC_SAMPLES_PER_SECOND: Final = "trainyard_samples_per_second"
METRIC_EVALUATION: Final = "trainyard_eval_"
"""Prefix of the metrics of evaluations. The name of the metric follows, for example accuracy."""
METRIC_CHECKPOINT_STEP: Final = "trainyard_checkpoint_step"
METRIC_CHECKPOINT_TIME: Final = "trainyard_checkpoint_timestamp_seconds"
METRIC_CHECKPOINT_DURATION: Final = "trainyard_checkpoint_duration_seconds"
METRIC_CHECKPOINT_SIZE: Final = "trainyard_checkpoint_bytes"
METRIC_CHECKPOINT_STALL: Final = "trainyard_checkpoint_stall_seconds_total"
METRIC_CHECKPOINT_FAILURES: Final = "trainyard_checkpoint_failures_total"
METRIC_CHECKPOINT_DAMAGED: Final = "trainyard_checkpoints_damaged"
METRIC_NON_FINITE: Final = "trainyard_nonfinite_steps_total"
METRIC_SKIPPED: Final = "trainyard_skipped_steps_total"
METRIC_SKIPPED_STEP: Final = "trainyard_last_skipped_step"
METRIC_ROLLBACKS: Final = "trainyard_rollbacks_total"
METRIC_RANK_COMPUTE: Final = "trainyard_rank_compute_seconds"
METRIC_STRAGGLER: Final = "trainyard_straggler_ratio"
METRIC_RESUMED_STEP: Final = "trainyard_resumed_step"
METRIC_MEMORY: Final = "trainyard_memory_bytes"
METRIC_RUN_INFO: Final = "trainyard_run_info"
METRIC_LAST_STEP: Final = "trainyard_last_step_timestamp_seconds"
METRIC_STEP_DURATION: Final = "trainyard_step_duration_seconds"
METRIC_STEP_PART: Final = "trainyard_step_part_ratio"

METRIC_LABELS: Final = ("namespace", "job_name")
"""Labels of every worker metric. The label `job` is not one of them: Prometheus sets it from its scrape
configuration."""
