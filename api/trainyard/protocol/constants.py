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

METRIC_LABELS: Final = ("namespace", "job_name")
"""Labels of every worker metric. Not `job`: Prometheus sets that one itself, from the scrape configuration."""
