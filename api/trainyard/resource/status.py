"""`status` of a TrainingJob: the observed state of the job, written by the operator only."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from trainyard.base import ApiModel, Count, Timestamp
from trainyard.protocol.progress import Measurement, Progress
from trainyard.resource.elastic import ElasticStatus
from trainyard.resource.scheduling import SchedulingStatus


class Phase(StrEnum):
    """Summary of the conditions in one word."""

    PENDING = "Pending"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


def _known_value(kind: type[StrEnum]) -> BeforeValidator:
    """Return a validator that reads a value of another version as None: the next status has a value of this version."""
    return BeforeValidator(lambda value: None if isinstance(value, str) and value not in set(kind) else value)


class ConditionType(StrEnum):
    """Types of the conditions of a job. Several can be True at one time."""

    CREATED = "Created"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    FINISHED = "Finished"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    UNREADABLE = "Unreadable"
    UNKNOWN_FIELDS = "UnknownFields"
    SPEC_CHANGED = "SpecChanged"
    STATUS_REFUSED = "StatusRefused"


class Reason(StrEnum):
    """Reasons of conditions and events: a closed set, so that scripts and alerts can rely on it."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    SUSPENDING = "Suspending"
    UNREADABLE = "Unreadable"
    READABLE = "Readable"
    UNKNOWN_FIELDS = "UnknownFields"
    ALL_FIELDS_KNOWN = "AllFieldsKnown"
    AS_ACCEPTED = "AsAccepted"
    REVISION_MISSING = "RevisionMissing"
    REVISION_ALTERED = "RevisionAltered"
    REVISION_REFUSED = "RevisionRefused"
    STATUS_REFUSED = "StatusRefused"
    STATUS_STORED = "StatusStored"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    WAITING_FOR_PODS = "WaitingForPods"
    WAITING_FOR_OLD_PODS = "WaitingForOldPods"
    POD_OVERDUE = "PodOverdue"
    BACKING_OFF = "BackingOff"
    RESTARTING_IN_PLACE = "RestartingInPlace"
    UNSCHEDULABLE = "Unschedulable"
    SCHEDULING_TIMEOUT = "SchedulingTimeout"
    QUEUED = "Queued"
    QUEUE_UNAVAILABLE = "QueueUnavailable"
    GANG_UNAVAILABLE = "GangUnavailable"
    SCHEDULER_SILENT = "SchedulerSilent"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG = "ContainerConfigError"
    CONTAINER_CREATING = "ContainerCreating"
    CRASH_LOOP = "CrashLoopBackOff"
    NAME_TAKEN = "NameTaken"
    PODS_REFUSED = "PodsRefused"
    ALL_WORKERS_RUNNING = "AllWorkersRunning"
    STEPPING = "Stepping"
    NO_STEP_YET = "NoStepYet"
    EVALUATING = "Evaluating"
    WORKER_FAILED = "WorkerFailed"
    WORKER_LOST = "WorkerLost"
    PEER_LOST = "PeerLost"
    INVALID_CONFIG = "InvalidConfig"
    FINAL_CHECKPOINT_FAILED = "FinalCheckpointFailed"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    CANNOT_START = "ContainerCannotStart"
    DISRUPTED = "Disrupted"
    SPEC_CHANGED = "SpecChanged"
    RESIZED = "Resized"
    BAD_STEPS = "BadSteps"
    STRAGGLER = "Straggler"
    ROLLED_BACK = "RolledBack"
    METRICS_REFUSED = "MetricsRefused"
    LAUNCHER_SILENT = "LauncherSilent"
    HEALTHY = "Healthy"
    STARTUP_TIMEOUT = "StartupTimeout"
    CHECKPOINT_LOADED = "CheckpointLoaded"
    CHECKPOINT_DAMAGED = "CheckpointDamaged"
    CHECKPOINT_FAILED = "CheckpointFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    RESTART_LIMIT = "RestartLimitReached"
    DISRUPTION_LIMIT = "DisruptionLimitReached"
    RESTART_RULE = "RestartRule"
    RESTARTED = "Restarted"
    FINISHED = "Finished"
    ALL_WORKERS_SUCCEEDED = "AllWorkersSucceeded"
    RANK_ZERO_SUCCEEDED = "RankZeroSucceeded"


SUMMARY_CONDITIONS = (ConditionType.FINISHED, ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)
"""Conditions that follow from the others, for tools that do not know this resource."""


class Condition(ApiModel):
    """One aspect of the job's state (Kubernetes API conventions, typical status properties)."""

    type: Annotated[str, Field(max_length=316)]
    """Type of the condition: Created, Suspended, Running, Progressing, Degraded, Restarting, Succeeded or Failed;
    Finished, Ready, Reconciling or Stalled, which summarize these for tools; and Unreadable, UnknownFields, SpecChanged
    or StatusRefused where the object itself needs attention."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds: True, False or Unknown."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why the condition has this status, in one CamelCase word from a fixed set."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Why the condition has this status and what to do about it, in one sentence."""
    last_transition_time: Timestamp
    """Time at which the status of the condition last changed."""
    observed_generation: Count = 0
    """metadata.generation of the job that the condition was observed for."""


class WorkerCounts(ApiModel):
    """Number of workers of the current attempt by state."""

    desired: Count = 0
    """Number of workers of the attempt: workers.replicas, or fewer with spec.elastic."""
    running: Count = 0
    """Number of workers whose container runs."""
    ready: Count = 0
    """Number of workers whose container runs and is ready."""
    succeeded: Count = 0
    """Number of workers that exited with code 0."""
    failed: Count = 0
    """Number of workers that failed."""


class Failure(ApiModel):
    """First failure of an attempt: the cause, not the failures of other workers that follow from it."""

    attempt: Count
    """Number of the attempt that failed."""
    pod: str | None = None
    """Name of the failed pod."""
    node: str | None = None
    """Name of the node that the pod ran on."""
    container: Annotated[str, Field(max_length=63)] | None = None
    """Name of the container that failed, if it is not the worker: an init container."""
    rank: Count | None = None
    """Global rank of the failed process; absent if it is not known."""
    exit_code: int | None = None
    """Exit code of the container; absent if it has none, for example after the loss of a node."""
    reason: Annotated[str, Field(max_length=1024)]
    """What happened, in one word: the name of an exception or a signal, OOMKilled, GPUOutOfMemory, GPUFault, Evicted,
    OutOfcpu, WorkerLost, Hang, ... Rules of restartPolicy match it with onReasons."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Message of the exception, or the last line that the worker wrote."""
    step: Count | None = None
    """Optimizer steps that were complete when it happened; absent if that is not known."""
    at: Timestamp
    """Time of the failure."""


class Activity(StrEnum):
    """What the time of a job is accounted as; see `Goodput`."""

    STARTUP = "Startup"
    PRODUCTIVE = "Productive"
    RECOVERY = "Recovery"
    SUSPENDED = "Suspended"


class Goodput(ApiModel):
    """Breakdown of the wall time from startTime to accountedAt. The parts add up to it, to the second."""

    productive_seconds: Count = 0
    """Seconds of training that made new steps. For your own program without spec.metrics: seconds during which all
    workers ran."""
    startup_seconds: Count = 0
    """Seconds from the start, or from the end of a suspension, to the first new step: waiting for pods, loading data,
    compiling."""
    checkpoint_seconds: Count = 0
    """Seconds that training waited for checkpoints to be written."""
    recovery_seconds: Count = 0
    """Seconds from a failure, a disruption or a resize until training had reached the same step again."""
    suspended_seconds: Count = 0
    """Seconds during which the job was suspended, including the time in which its pods ended."""
    ratio: Measurement = None
    """Goodput: productiveSeconds divided by the sum of all parts, from 0 to 1."""
    activity: Annotated[Activity | None, _known_value(Activity)] = None
    """What the time since accountedAt counts as: Startup, Productive, Recovery or Suspended; absent once the job has
    finished."""
    accounted_at: Timestamp
    """Time up to which the breakdown accounts: when this status was written."""
    highest_step: Count = 0
    """Highest number of optimizer steps that any attempt has reached."""
    pending_checkpoint_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds of waiting for checkpoints that are not part of checkpointSeconds yet; they will be subtracted from the
    next productive period."""

    def parts(self) -> dict[str, int]:
        """Return the seconds of each part, with its name in lower case as key."""
        return {
            "productive": self.productive_seconds,
            "startup": self.startup_seconds,
            "checkpoint": self.checkpoint_seconds,
            "recovery": self.recovery_seconds,
            "suspended": self.suspended_seconds,
        }


class TrainingJobStatus(ApiModel):
    """Observed state of a TrainingJob. The operator writes it; other changes are overwritten."""

    phase: Annotated[Phase | None, _known_value(Phase)] = None
    """Summary of the conditions: Pending, Running, Restarting, Suspending (its pods are ending), Suspended, Succeeded
    or Failed."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """Conditions of the job, one of each type. Succeeded and Failed are final; kubectl wait --for=condition=Finished
    waits for either. Suspended is True only when no pod of the job is left. Ready, Reconciling and Stalled have the
    meaning of kstatus: Ready is True while the job runs, is suspended, or has succeeded; Stalled is True when it has
    failed."""
    observed_generation: Count = 0
    """metadata.generation of the job that this status was computed for."""
    attempt: Count = 0
    """Number of the current attempt, from 1; 0 before the first. The group of workers starts, runs and fails as one:
    each restart is a new attempt. Pods are named JOB-ATTEMPT-INDEX."""
    accepted_revision: Annotated[str, Field(max_length=253)] | None = None
    """Name of the ControllerRevision that holds what the operator accepted when it started or resumed the job: the
    immutable part of the spec, and the image. The pods of the job are built from it, whatever is changed later."""
    pod_attempt_override: Count | None = None
    """Attempt number in the names of the current pods, if the group was restarted inside pods of an earlier attempt
    (restartPolicy.inPlace); absent: the same as attempt."""
    slow_nodes: tuple[str, ...] = ()
    """Names of nodes on which a rank was a straggler and that the pods therefore avoid (health.straggler.action:
    Replace)."""
    slow_nodes_readmitted: bool = False
    """Whether the nodes in slowNodes are used again, because the cluster had no capacity without them. No further
    stragglers are replaced then."""
    restarts: Count = 0
    """Number of restarts: attempts that followed a failure, a disruption or a resize of the one before."""
    restarts_counted: Count = 0
    """Number of restarts that count against restartPolicy.maxRestarts."""
    disruptions: Count = 0
    """Number of restarts after disruptions since the last good run; they count against restartPolicy.maxDisruptions."""
    restarts_without_progress: Count = 0
    """Number of restarts since the last attempt that made progress; restartPolicy.backoff grows with it."""
    refusing_nodes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Names of nodes that refused a pod since all workers last ran, and that the pods therefore avoid."""
    faulty_nodes: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Names of nodes on which a GPU failed (GPUFault, or the same CUDAError twice), and that the pods therefore avoid
    until the group cannot be scheduled without them."""
    succeeded_indexes: Annotated[str, Field(max_length=65_536)] = ""
    """Indexes of the pods of the current attempt that have succeeded, for example 0,2-5. They are remembered here, so a
    pod that has succeeded may be removed while others still run."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the worker pods, for kubectl and autoscalers (scale subresource)."""
    running_seconds: Count = 0
    """Seconds that all workers ran, in all periods that have ended; activeDeadlineSeconds limits them. If the condition
    Running is True, the time since its lastTransitionTime is to be added."""
    scheduling: SchedulingStatus | None = None
    """Wait of the group for nodes; only with schedulingTimeoutSeconds."""
    start_time: Timestamp | None = None
    """Time at which the operator accepted the job."""
    completion_time: Timestamp | None = None
    """Time at which the job succeeded or failed."""
    workers: WorkerCounts = WorkerCounts()
    """Number of workers of the current attempt by state."""
    progress: Progress | None = None
    """Step, loss, throughput and other metrics of the training, as of progress.updatedAt."""
    elastic: ElasticStatus | None = None
    """Observed size of the group; only with spec.elastic."""
    goodput: Goodput | None = None
    """Breakdown of the wall time of the job, as of the last change of this status."""
    last_failure: Failure | None = None
    """First failure of the latest attempt that failed. It is kept when later attempts run or succeed."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of a type; None if it was never set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether the condition of a type is True."""
        condition = self.condition(kind)
        return condition is not None and condition.status == "True"

    @property
    def pod_attempt(self) -> int:
        """Return the attempt number in the names of the current pods."""
        return self.pod_attempt_override or self.attempt

    @property
    def avoided_nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes that pods of the current attempt avoid."""
        slow = () if self.slow_nodes_readmitted else self.slow_nodes
        return tuple(dict.fromkeys((*slow, *self.refusing_nodes, *self.faulty_nodes)))

    @property
    def suspending(self) -> bool:
        """Whether the job is to be suspended and its pods are ending."""
        condition = self.condition(ConditionType.SUSPENDED)
        return condition is not None and condition.status == "False" and condition.reason == Reason.SUSPENDING

    @property
    def finished(self) -> bool:
        """Whether the job has succeeded or failed."""
        return self.is_true(ConditionType.SUCCEEDED) or self.is_true(ConditionType.FAILED)
