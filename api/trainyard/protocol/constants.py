"""Names shared by operator, trainer and user programs: labels, environment variables, files, exit codes, metrics."""

from typing import Final

GROUP: Final = "trainyard.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TrainingJob"
PLURAL: Final = "trainingjobs"
CONTROLLER: Final = f"{GROUP}/operator"
"""Name of the operator: in spec.managedBy, and as the reporter of events."""

# Labels of all children of a job.
LABEL_JOB: Final = f"{GROUP}/job-name"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_INDEX: Final = f"{GROUP}/index"
LABEL_REPLICAS: Final = f"{GROUP}/replicas"
LABEL_ROLE: Final = f"{GROUP}/role"
LABEL_REVISION: Final = f"{GROUP}/revision"
"""Hash of the snapshot of the spec that a pod was built from (status.acceptedRevision: JOB-HASH)."""
LABEL_DOMAIN: Final = f"{GROUP}/domain"
"""Number, within the group, of the topology domain that a pod belongs to (spec.scheduling.topologyKey)."""
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
LAUNCHER_FILES: Final = (
    LAUNCHER_FILE,
    "launcher_dns.py",
    "launcher_output.py",
    "launcher_port.py",
    "launcher_protocol.py",
    "log_tail.py",
)
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
ENV_CHECKPOINT_URL: Final = "TRAINYARD_CHECKPOINT_URL"
"""URL of the job's folder in an object store (spec.checkpoint.url), in place of ENV_CHECKPOINTS."""
ENV_DEVICE: Final = "TRAINYARD_DEVICE"
"""Resource that is the GPU of each rank of the built-in trainer, such as nvidia.com/gpu, or DEVICE_CLAIM; not set for
ranks without a GPU, nor outside of a cluster."""
DEVICE_CLAIM: Final = "resource claim"
"""Value of ENV_DEVICE for devices of a resource claim, whose vendor is not known."""
ENV_IMAGE: Final = "TRAINYARD_IMAGE"
"""Image of the worker, for the record of the run; not set outside of a cluster."""
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
EXIT_FINAL_CHECKPOINT_FAILED: Final = 81
"""Exit code of a worker whose training is complete, but whose final state could not be saved (not a code of
sysexits.h): the job fails without a restart."""

PROFILING_MODULE: Final = "trainyard_trainer.metrics.profiling"
"""Program in the trainer's image that requests a trace from the ranks of its pod."""

METRIC_LABELS: Final = ("namespace", "job_name")
"""Labels of every worker metric. The label `job` is not one of them: Prometheus sets it from its scrape
configuration."""
