"""`status` of a TrainingJob: written by the operator only, and true whenever it is read."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from trainyard.base import ApiModel, Count, Timestamp
from trainyard.protocol.progress import Measurement, Progress
from trainyard.resource.elastic import ElasticStatus


class Phase(StrEnum):
    """One word for where the job stands, derived from the conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What can be true or false of a job at one time."""

    CREATED = "Created"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a condition has its status: a closed set, so that scripts and alerts can rely on it."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    WAITING_FOR_PODS = "WaitingForPods"
    WAITING_FOR_OLD_PODS = "WaitingForOldPods"
    POD_OVERDUE = "PodOverdue"
    BACKING_OFF = "BackingOff"
    RESTARTING_IN_PLACE = "RestartingInPlace"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigError"
    NAME_TAKEN = "NameTaken"
    PODS_REFUSED = "PodsRefused"
    ALL_WORKERS_RUNNING = "AllWorkersRunning"
    STEPPING = "Stepping"
    NO_STEP_YET = "NoStepYet"
    WORKER_FAILED = "WorkerFailed"
    WORKER_LOST = "WorkerLost"
    INVALID_CONFIG = "InvalidConfig"
    DISRUPTED = "Disrupted"
    SPEC_CHANGED = "SpecChanged"
    RESIZED = "Resized"
    BAD_STEPS = "BadSteps"
    STRAGGLER = "Straggler"
    ROLLED_BACK = "RolledBack"
    HEALTHY = "Healthy"
    STARTUP_TIMEOUT = "StartupTimeout"
    CHECKPOINT_LOADED = "CheckpointLoaded"
    CHECKPOINT_DAMAGED = "CheckpointDamaged"
    CHECKPOINT_FAILED = "CheckpointFailed"
    RESTART_LIMIT = "RestartLimitReached"
    RESTART_RULE = "RestartRule"
    RESTARTED = "Restarted"
    FINISHED = "Finished"
    ALL_WORKERS_SUCCEEDED = "AllWorkersSucceeded"


class Condition(ApiModel):
    """One observation, as the Kubernetes API conventions define it."""

    type: Annotated[str, Field(max_length=316)]
    """What is observed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word: why."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """One sentence: why, and what to do about it."""
    last_transition_time: Timestamp
    """When status last changed."""
    observed_generation: Count = 0
    """metadata.generation of the spec that this was observed for."""


class WorkerCounts(ApiModel):
    """Pods of the current attempt."""

    desired: Count = 0
    """Workers that the attempt needs: workers.replicas, or fewer with spec.elastic."""
    running: Count = 0
    """Pods whose worker container runs."""
    ready: Count = 0
    """Pods that are also ready."""
    succeeded: Count = 0
    """Pods whose worker exited with code 0."""
    failed: Count = 0
    """Pods whose worker failed."""


class Failure(ApiModel):
    """The first failure of an attempt: the one that brought the others down."""

    attempt: Count
    """Attempt that failed."""
    pod: str | None = None
    """Name of the pod."""
    node: str | None = None
    """Node that the pod ran on."""
    rank: Count | None = None
    """Global rank of the process, where it is known."""
    exit_code: int | None = None
    """Exit code of the worker container."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word: what happened."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Exception or last line of the worker."""
    step: Count | None = None
    """Optimizer step at which it happened, where it is known."""
    at: Timestamp
    """When."""


class Activity(StrEnum):
    """What a job spends its time on."""

    STARTUP = "Startup"
    PRODUCTIVE = "Productive"
    RECOVERY = "Recovery"
    SUSPENDED = "Suspended"


class Goodput(ApiModel):
    """What the wall time from startTime to accountedAt went into. The parts add up to it, to the second."""

    productive_seconds: Count = 0
    """Steps were made that had never been made before; of a program of your own: all workers ran."""
    startup_seconds: Count = 0
    """From the start, or a resumption, until the first such step: waiting for pods, loading, compiling."""
    checkpoint_seconds: Count = 0
    """Productive but for waiting for checkpoints."""
    recovery_seconds: Count = 0
    """From a failure, a disruption or a resize until training had reached the same step again."""
    suspended_seconds: Count = 0
    """Suspended."""
    ratio: Measurement = None
    """productiveSeconds over the sum of all."""
    activity: Activity | None = None
    """What the time after accountedAt will be counted as; absent once the job has ended."""
    accounted_at: Timestamp
    """Until when the time is accounted for: when this status was written."""
    highest_step: Count = 0
    """Highest step that any attempt has reached."""
    pending_checkpoint_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Waiting for checkpoints that is not in checkpointSeconds yet; it will be taken off what is productive next."""

    def parts(self) -> dict[str, int]:
        """Seconds by what they went into."""
        return {
            "productive": self.productive_seconds,
            "startup": self.startup_seconds,
            "checkpoint": self.checkpoint_seconds,
            "recovery": self.recovery_seconds,
            "suspended": self.suspended_seconds,
        }


class TrainingJobStatus(ApiModel):
    """Where the job stands."""

    phase: Phase | None = None
    """One word, derived from the conditions."""
    conditions: tuple[Condition, ...] = ()
    """Created, Suspended, Running, Progressing, Degraded, Restarting, Succeeded, Failed."""
    observed_generation: Count = 0
    """metadata.generation of the spec that this status answers."""
    attempt: Count = 0
    """Number of the current attempt, from 1; 0 before the first. Pods are named JOB-ATTEMPT-INDEX."""
    pod_attempt_override: Count | None = None
    """Number in the names of the current pods, where the group has been restarted inside them and attempt has gone
    on; absent: it is attempt."""
    slow_nodes: tuple[str, ...] = ()
    """Nodes on which a rank was slow, so that the group was started anew without them."""
    slow_nodes_readmitted: bool = False
    """There was no room without them: pods do not stay away from them any more, and nothing more is replaced."""
    restarts: Count = 0
    """Attempts that were started because the one before failed or was disturbed."""
    restarts_counted: Count = 0
    """Those of the restarts that count against restartPolicy.maxRestarts."""
    start_time: Timestamp | None = None
    """When the operator took up the job."""
    completion_time: Timestamp | None = None
    """When the job succeeded or failed for good."""
    workers: WorkerCounts = WorkerCounts()
    """Pods of the current attempt."""
    progress: Progress | None = None
    """Step, loss and throughput; updatedAt tells how old they are."""
    elastic: ElasticStatus | None = None
    """The size of the current attempt, with spec.elastic."""
    goodput: Goodput | None = None
    """What the time went into, as of the last change of this status."""
    last_failure: Failure | None = None
    """Why the last attempt ended early."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it was ever set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether the condition of that type holds."""
        found = self.condition(kind)
        return found is not None and found.status == "True"

    @property
    def pod_attempt(self) -> int:
        """Attempt that the current pods were made for."""
        return self.pod_attempt_override or self.attempt

    @property
    def avoided_nodes(self) -> tuple[str, ...]:
        """Nodes that the pods of the current attempt stay away from."""
        return () if self.slow_nodes_readmitted else self.slow_nodes

    @property
    def finished(self) -> bool:
        """Whether the job has ended, for better or worse."""
        return self.is_true(ConditionType.SUCCEEDED) or self.is_true(ConditionType.FAILED)
