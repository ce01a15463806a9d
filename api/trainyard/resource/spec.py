"""`spec` of a TrainingJob: the workers, the program that they run, and how the job reacts to failures."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import MAX_QUANTITY, MUTABLE, ApiModel, NonNegative, OpaqueObject, Positive, Rule
from trainyard.resource import quantity
from trainyard.resource.checkpoint import Checkpoint
from trainyard.resource.devices import counted_devices
from trainyard.resource.elastic import Elastic
from trainyard.resource.health import BadStepPolicy, Health
from trainyard.resource.parallelism import Parallelism
from trainyard.resource.restart import RestartPolicy
from trainyard.resource.scheduling import Scheduling
from trainyard.resource.scrape import Metrics
from trainyard.resource.spec_rules import SPEC_RULES
from trainyard.resource.training import TrainerSpec

Quantity = Annotated[
    Annotated[
        str,
        Field(max_length=64, pattern=quantity.PATTERN),
    ]
    | Annotated[int, Field(ge=0, le=MAX_QUANTITY)],
    Field(union_mode="left_to_right"),
]
"""A quantity as in a pod, at least 0: a number with or without a unit, or a whole number."""
ResourceList = Annotated[dict[str, Quantity], Field(max_length=32)]
MemorySize = Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""A size of memory above 0, as a quantity."""

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
CONTROLLER_PATTERN = rf"^{_LABEL}(\.{_LABEL})*/[A-Za-z0-9/._~%!$&'()*+,;=:@-]+$"
"""Pattern of the name of a controller: a domain and a path, as in spec.managedBy of a Job."""


class Resources(ApiModel):
    """Compute resources of a container, as in a pod."""

    limits: ResourceList | None = None
    """Most that the container may use, for example {nvidia.com/gpu: 8, memory: 64Gi}. The number of accelerators
    (nvidia.com/gpu, nvidia.com/mig-..., amd.com/gpu, habana.ai/gaudi) also sets workers.procsPerWorker: auto. Network
    devices (rdma/...) and all other resources reach the pod as they are. A fraction needs quotes: {cpu: "0.5"}."""
    requests: ResourceList | None = None
    """What the scheduler reserves on a node for the container. Defaults to limits."""


class TemplateMetadata(ApiModel):
    """Labels and annotations that are added to every pod."""

    labels: Annotated[dict[str, str], Field(max_length=64)] | None = None
    """Labels of the pods. The operator sets those under trainyard.dev/ itself and overrides them."""
    annotations: Annotated[dict[str, str], Field(max_length=64)] | None = None
    """Annotations of the pods."""


class PodTemplate(ApiModel):
    """Additional parts of a pod. Where the operator sets a field itself, its value takes precedence."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations that are added to every pod."""
    spec: OpaqueObject = Field(default_factory=dict)
    """Any field of a pod's spec: nodeSelector, tolerations, volumes, initContainers, ... A container named worker is
    merged into the operator's own, for example to add volumeMounts, env, ports or a securityContext; other containers
    run beside it as they are. The fields of a securityContext are added to the operator's one by one. A volume that is
    mounted at /dev/shm or /tmp replaces the operator's there (see workers.sharedMemory). Names of volumes that start
    with trainyard- and the port names launcher and, with hostNetwork, rendezvous are reserved. Pods with hostNetwork
    have their ports reserved on the node, so that only one of them runs on a node. The API server checks these fields
    before the job starts: a malformed one fails the job with reason InvalidSpec. A pod that a quota or a policy refuses
    is reported in the condition Running.
    """


class Workers(ApiModel):
    """The group of pods that trains one model together. All of them start, run and restart as one."""

    replicas: Annotated[int, Field(ge=1, le=10_000), MUTABLE] = 1
    """Number of worker pods. May be changed at any time, also by kubectl scale: the group then restarts with the new
    number from its newest checkpoint, without counting against restartPolicy.maxRestarts. With spec.elastic the group
    keeps training while it waits for capacity for additional workers. Defaults to 1."""
    procs_per_worker: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Number of training processes (ranks) in each pod, from 1 to 64, or auto: one for each accelerator in
    resources.limits (nvidia.com/gpu, nvidia.com/mig-..., amd.com/gpu, habana.ai/gaudi), and one without accelerators.
    Devices of other kinds and of resource claims need a number. The world size is replicas x procsPerWorker. Defaults
    to auto."""
    resources: Resources = Resources()
    """Compute resources of the worker container in each pod, GPUs among them."""
    gpu_memory: MemorySize | None = None
    """Memory of each GPU, for example 80Gi. The operator compares it with its estimate for the built-in trainer and
    fails a job that does not fit (reason InvalidSpec) before any pod is created. Without it nothing is compared, since
    Kubernetes does not know the memory of GPUs."""
    shared_memory: MemorySize | None = None
    """Size of /dev/shm in each worker, for example 16Gi, which counts towards the memory limit as far as it is filled;
    `trainyard plan` counts all of it. NCCL, data loaders and asynchronous checkpoints use it. Defaults to the memory
    limit, and without one to 64Gi per rank, or more if asynchronous checkpoints need it. A volume that
    workers.template mounts at /dev/shm replaces it."""
    template: PodTemplate = PodTemplate()
    """Additional parts of the worker pods: labels, annotations and any field of a pod's spec."""


class ParameterServerSpec(ApiModel):
    """The pod of the parameter server. It runs one process, to which all workers send their gradients."""

    resources: Resources = Resources()
    """Compute resources of its container. It needs memory for the parameters, the sum of their gradients, one incoming
    gradient and the optimizer state. It does not use GPUs."""
    template: PodTemplate = PodTemplate()
    """Additional parts of the pod: labels, annotations and any field of a pod's spec. Its container, too, is named
    worker."""


class EnvVar(ApiModel):
    """An environment variable of the worker container, as in a pod."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the variable. The operator sets those of the rendezvous (MASTER_ADDR, PET_NNODES, ...) itself."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Value of the variable; it may refer to others, also to the operator's: $(TRAINYARD_JOB_NAME). Give either value
    or valueFrom."""
    value_from: OpaqueObject | None = None
    """Source of the value, as in a pod: fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef."""


class LocalObjectReference(ApiModel):
    """Reference to an object in the namespace of the job."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the object."""


class TrainingJobSpec(ApiModel):
    """Desired state of a TrainingJob. A field is immutable while the job is active unless it is marked `MUTABLE`."""

    suspend: Annotated[bool, MUTABLE] = False
    """Whether the job is suspended. A suspended job has no pods: when it is set to true on a running job, the built-in
    trainer saves a checkpoint before its pods end. Setting it to false starts a new attempt, which resumes from the
    newest checkpoint. May be changed at any time. Defaults to false."""
    managed_by: Annotated[str, Field(max_length=63, pattern=CONTROLLER_PATTERN)] | None = None
    """Controller that manages the job, as in a Job: a domain and a path, for example kueue.x-k8s.io/multikueue. With
    any other value than trainyard.dev/operator the operator does nothing for the job: it creates no objects and writes
    no status. It cannot be changed. Defaults to the operator."""
    active_deadline_seconds: Annotated[Positive | None, MUTABLE] = None
    """Longest time in seconds that all workers may run, over all attempts together. Waiting for nodes, restarting and
    suspension do not count. When it has passed, the job fails with reason DeadlineExceeded; the built-in trainer saves
    a checkpoint before its pods end. May be changed at any time. No limit if absent."""
    scheduling_timeout_seconds: Annotated[Positive | None, MUTABLE] = None
    """Longest time in seconds that some pods of the group may wait for a node while others hold theirs. When it has
    passed, all pods of the group are deleted, and created again after a random wait that grows with each timeout in a
    row, up to five minutes: two groups that each hold half of the nodes do not block each other for ever. It spends no
    restart. May be changed at any time. Without it a group waits until all of its pods are scheduled."""
    scheduling: Scheduling | None = None
    """How the pods of the group get their nodes: all or none of them, in a queue, with a priority, close to each other.
    Without it the default scheduler places the pods one by one."""
    success_policy: Literal["AllWorkers", "RankZero"] = "AllWorkers"
    """When the job has succeeded. AllWorkers: once every worker has ended with exit code 0. RankZero: once worker 0,
    which runs rank 0, has; what becomes of the others then depends on cleanPodPolicy. Only with command, since the
    ranks of the built-in trainer end together. Defaults to AllWorkers."""
    clean_pod_policy: Annotated[Literal["Running", "All", "None"], MUTABLE] = "Running"
    """Which pods are deleted when the job has succeeded or failed. Running: those that still hold resources; pods that
    have ended stay for their logs. All: every pod. None: no worker, so that one that still runs keeps its GPUs until it
    ends by itself. May be changed at any time. Defaults to Running."""
    ttl_seconds_after_finished: Annotated[NonNegative | None, MUTABLE] = None
    """Time in seconds after which a job that has succeeded or failed is deleted, with all that it owns: its pods, and
    its checkpoints if they are in a claim without retain. May be changed at any time, also when the job has finished.
    If absent, the job stays until it is deleted."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Container image of the workers. Required with command. With trainer it defaults to the trainer image that the
    operator was installed with when the job was started or last resumed: an upgrade of the operator does not change it
    (status.acceptedRevision)."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the kubelet pulls the image, as in a pod: Always, IfNotPresent or Never. Defaults to the default of
    Kubernetes: Always for the tag latest, else IfNotPresent."""
    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Field(max_length=16)] | None = None
    """Secrets in the namespace of the job with the credentials for pulling its images, as in a pod."""
    workers: Workers = Workers()
    """The worker pods: how many there are, their processes and their resources."""
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)] | None = None
    """Command line of your own program, for example [torchrun, train.py]; give either command or trainer. Each worker
    runs it with the environment variables MASTER_ADDR and MASTER_PORT and the PET_ variables that torchrun reads; with
    one process per worker also with RANK and WORLD_SIZE, for init_process_group("env://")."""
    args: Annotated[tuple[str, ...], Field(max_length=1024)] | None = None
    """Arguments that are appended to command."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] | None = None
    """Environment variables of the worker container in each pod, in addition to those that the operator sets."""
    trainer: TrainerSpec | None = None
    """Configuration of the built-in trainer: model, data, optimizer and duration; give either trainer or command."""
    parallelism: Parallelism | None = None
    """How the built-in trainer distributes model and data over the ranks. Defaults to data parallelism (ddp)."""
    parameter_server: ParameterServerSpec | None = None
    """Resources and template of the parameter server's pod; only with parallelism.data.mode: parameterServer."""
    checkpoint: Checkpoint | None = None
    """Where and how often the state of the run is saved. Without it every restart begins at the first step."""
    elastic: Elastic | None = None
    """How far the group may shrink while the cluster has no capacity for all workers. Without it the job waits until
    all workers can be scheduled."""
    restart_policy: Annotated[RestartPolicy, MUTABLE] = RestartPolicy()
    """How often, how quickly and after which failures the group is restarted. May be changed at any time; it applies
    from the next failure on."""
    metrics: Metrics | None = None
    """Where your own program serves Prometheus metrics. Without it neither Prometheus nor the operator reads any. Not
    allowed with trainer, which serves metrics without it."""
    health: Health | None = None
    """When a run of the built-in trainer that stops making progress is restarted: startup, hangs, bad steps and
    stragglers. Only with trainer."""

    cel_rules: ClassVar[tuple[Rule, ...]] = SPEC_RULES

    @property
    def parallel(self) -> Parallelism:
        """Return `parallelism`, or its defaults where it is absent."""
        return self.parallelism or Parallelism()

    @property
    def procs_per_worker(self) -> int:
        """Return the number of ranks in each worker pod, with `auto` resolved.

        Raises:
            ValueError: the number of accelerators is not a whole number.
        """
        if self.workers.procs_per_worker != "auto":
            return self.workers.procs_per_worker
        limits = self.workers.resources.limits or {}
        kinds = counted_devices(limits)
        return max(1, int(limits[kinds[0]])) if kinds else 1

    @property
    def metrics_endpoint(self) -> Metrics | None:
        """Return where each worker serves metrics; None if it serves none."""
        return self.metrics if self.trainer is None else Metrics()

    @property
    def bad_steps(self) -> BadStepPolicy:
        """Return `health.badSteps`, or its defaults where it is absent."""
        return (self.health or Health()).bad_steps

    @property
    def restarts_in_place(self) -> bool:
        """Whether a new attempt may start inside the pods of the attempt before."""
        in_place = self.restart_policy.in_place
        return self.trainer is not None if in_place is None else in_place

    @property
    def world_size(self) -> int:
        """Return the number of ranks that train: workers x processes per worker, without the parameter server."""
        return self.workers.replicas * self.procs_per_worker

    @property
    def servers(self) -> int:
        """Return the number of parameter servers: 1 with parallelism.data.mode: parameterServer, else 0."""
        return int(self.parallel.data.mode == "parameterServer")

    @property
    def pods(self) -> int:
        """Return the number of pods of an attempt: the workers and the parameter server."""
        return self.workers.replicas + self.servers

    def is_parameter_server(self, index: int) -> bool:
        """Whether the pod with this index is the parameter server, which comes after all workers."""
        return bool(self.servers) and index >= self.workers.replicas
