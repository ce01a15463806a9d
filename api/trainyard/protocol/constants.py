"""Names that the operator, the trainer and their users must agree on: labels, variables, files, metrics."""

from typing import Final

GROUP: Final = "trainyard.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TrainingJob"
PLURAL: Final = "trainingjobs"

# Labels on every child of a job.
LABEL_JOB: Final = f"{GROUP}/job-name"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_INDEX: Final = f"{GROUP}/index"
LABEL_REPLICAS: Final = f"{GROUP}/replicas"
LABEL_ROLE: Final = f"{GROUP}/role"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "trainyard"

# By these a plain Prometheus finds the metrics of a pod, and so does the operator.
ANNOTATION_SCRAPE: Final = "prometheus.io/scrape"
ANNOTATION_PORT: Final = "prometheus.io/port"
ANNOTATION_PATH: Final = "prometheus.io/path"

# Inside a worker pod.
WORKER_CONTAINER: Final = "worker"
ROLE_WORKER: Final = "worker"
ROLE_SERVER: Final = "server"
ROLE_PLACEHOLDER: Final = "placeholder"
"""A pod that shows that there is room for one more worker (spec.elastic)."""
RENDEZVOUS_PORT: Final = 29500
METRICS_PORT: Final = 9400
LAUNCHER_PORT_NAME: Final = "launcher"
CONFIG_FOLDER: Final = "/etc/trainyard"
CONFIG_FILE: Final = "config.json"
LAUNCHER_FILE: Final = "launcher.py"
"""Program that starts a user's command, in `CONFIG_FOLDER`."""
LAUNCHER_FILES: Final = (LAUNCHER_FILE, "launcher_protocol.py")
"""Files of `trainyard.protocol` that the program consists of."""
CHECKPOINT_MOUNT: Final = "/checkpoints"

ENV_CONFIG: Final = "TRAINYARD_CONFIG"
"""Path of the resolved configuration (JSON, `trainyard.config.RunConfig`)."""
ENV_JOB: Final = "TRAINYARD_JOB_NAME"
ENV_NAMESPACE: Final = "TRAINYARD_NAMESPACE"
ENV_METRICS_PORT: Final = "TRAINYARD_METRICS_PORT"
ENV_LOG_LEVEL: Final = "TRAINYARD_LOG_LEVEL"
"""debug, info (the default) or warning; of the operator, and of rank 0 of the trainer (the others: warnings)."""
ENV_CACHE: Final = "TRAINYARD_CACHE"
"""Folder in which the trainer keeps prepared data; by default one under the folder for temporary files."""

ENV_PEAK_FLOPS: Final = "TRAINYARD_PEAK_FLOPS"
"""Floating-point operations per second that the device of one rank can do at most; where it is not known by itself."""
ENV_STEP_SAMPLES: Final = "TRAINYARD_STEP_SAMPLES"
"""on (the default) or off: whether rank 0 traces a step now and then, to say how much of it is communication."""
ENV_CHECKPOINTS: Final = "TRAINYARD_CHECKPOINTS"
"""Folder for the job's checkpoints; the programs of users get it, too."""
ENV_GRACE: Final = "TRAINYARD_GRACE_SECONDS"
"""Seconds from SIGTERM until the pod is killed."""

TOKEN_KEY: Final = "token"
"""Its key in the job's Secret."""

EXIT_INVALID_CONFIG: Final = 78
"""Exit code of a worker whose configuration can never work (EX_CONFIG of sysexits.h): no restart helps."""
EXIT_HANG: Final = 79
"""Exit code of a worker one of whose ranks has given no sign of life for too long (no code of sysexits.h)."""
EXIT_BAD_STEPS: Final = 80
"""Exit code of a worker whose run gives no finite gradient any more (no code of sysexits.h)."""

# Gauges and counters that the operator reads from rank 0 into status.progress.
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
"""Prefix; the name of the figure follows."""
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
"""Labels of every worker metric. Not `job`: Prometheus sets that one itself, from the scrape configuration."""
