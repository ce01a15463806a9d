"""`spec` of a TrainingJob: the workers, what they run, and what happens when they fail."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard.base import MUTABLE, ApiModel, OpaqueObject, Rule
from trainyard.resource.checkpoint import Checkpoint
from trainyard.resource.elastic import Elastic
from trainyard.resource.health import BadStepPolicy, Health
from trainyard.resource.parallelism import Parallelism
from trainyard.resource.restart import RestartPolicy
from trainyard.resource.scrape import Metrics
from trainyard.resource.spec_rules import SPEC_RULES
from trainyard.resource.training import TrainerSpec

Quantity = Annotated[
    str | int,
    Field(
        union_mode="left_to_right",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
ResourceList = Annotated[dict[str, Quantity], Field(max_length=32)]

GPU_RESOURCE = "nvidia.com/gpu"


class Resources(ApiModel):
    """Compute resources of the worker container, as in a pod."""

    limits: ResourceList | None = None
    """What the worker may use at most; the GPUs stand here (nvidia.com/gpu)."""
    requests: ResourceList | None = None
    """What the scheduler sets aside; the limits if absent."""


class TemplateMetadata(ApiModel):
    """Labels and annotations added to every worker pod."""

    labels: Annotated[dict[str, str], Field(max_length=64)] | None = None
    """Labels; those under trainyard.dev/ are the operator's."""
    annotations: Annotated[dict[str, str], Field(max_length=64)] | None = None
    """Annotations."""


class PodTemplate(ApiModel):
    """Any part of a pod, merged under what the operator sets."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of the pods."""
    spec: OpaqueObject = Field(default_factory=dict)
    """Any field of a pod's spec: nodeSelector, tolerations, volumes, initContainers, ... The container named worker is
    merged with the operator's own (volumeMounts, securityContext, ...); other containers are added as they are."""


class Workers(ApiModel):
    """The group of pods that trains one model together."""

    replicas: Annotated[int, Field(ge=1, le=10_000), MUTABLE] = 1
    """Number of worker pods. Changing it (kubectl scale) restarts the group at the new size; with spec.elastic more of
    them are waited for while the group goes on."""
    procs_per_worker: Annotated[
        Annotated[int, Field(ge=1, le=64)] | Literal["auto"],
        Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
    ] = "auto"
    """Processes (ranks) in each pod. auto: one for each GPU in resources.limits, else one."""
    resources: Resources = Resources()
    """Resources of each pod's worker container."""
    gpu_memory: (
        Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")] | None
    ) = None
    """Memory of each GPU, for example 80Gi, against which the built-in trainer's need is checked before it starts.
    Kubernetes does not know it, so nothing is checked if absent."""
    template: PodTemplate = PodTemplate()
    """Anything else about the pods."""

    cel_rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "type(self.procsPerWorker) == int ? (self.procsPerWorker >= 1 && self.procsPerWorker <= 64)"
            " : self.procsPerWorker == 'auto'",
            "spec.workers.procsPerWorker: must be auto or a number from 1 to 64",
        ),
        Rule(
            "!has(self.gpuMemory) || (has(self.resources.limits) && 'nvidia.com/gpu' in self.resources.limits)",
            "spec.workers.gpuMemory: is the memory of each GPU, but the workers have none; set "
            "spec.workers.resources.limits[nvidia.com/gpu], or remove it",
        ),
    )


class ParameterServerSpec(ApiModel):
    """The parameter server: one more pod, with one process, that the workers send their gradients to."""

    resources: Resources = Resources()
    """Resources of its container. It holds the parameters, their sum of gradients, a gradient that arrives and the
    optimizer's state; a GPU is of no use to it."""
    template: PodTemplate = PodTemplate()
    """Anything else about the pod, as for the workers; its container is named worker, too."""


class EnvVar(ApiModel):
    """An environment variable of the worker, as in a pod."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """Name. Those of the rendezvous (MASTER_ADDR, PET_NNODES, ...) are the operator's."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Value."""
    value_from: OpaqueObject | None = None
    """Source of the value: fieldRef, secretKeyRef, ... as in a pod."""


class LocalObjectReference(ApiModel):
    """The name of an object in the job's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name."""


class TrainingJobSpec(ApiModel):
    """What to train, with which workers."""

    suspend: Annotated[bool, MUTABLE] = False
    """true: the job holds no pods. Setting it back to false starts a new attempt."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Image of the workers. With trainer it defaults to the trainer image of this installation."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; as in a pod."""
    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Field(max_length=16)] | None = None
    """Secrets for pulling the image; as in a pod."""
    workers: Workers = Workers()
    """The pods."""
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)] | None = None
    """Your own program, for example [torchrun, train.py]. Each worker gets MASTER_ADDR, MASTER_PORT and the
    PET_ variables that torchrun reads, with one process per worker also RANK and WORLD_SIZE."""
    args: Annotated[tuple[str, ...], Field(max_length=1024)] | None = None
    """Arguments of command."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] | None = None
    """Environment variables of the workers."""
    trainer: TrainerSpec | None = None
    """The built-in trainer, instead of command."""
    parallelism: Parallelism | None = None
    """How the built-in trainer splits model and data over the ranks; data-parallel (ddp) if absent."""
    parameter_server: ParameterServerSpec | None = None
    """The pod of the parameter server, with parallelism.data.mode parameterServer."""
    checkpoint: Checkpoint | None = None
    """Where the state of the run is kept. Without it a restart begins at the first step."""
    elastic: Elastic | None = None
    """With how few workers the job trains while there is no room for all; absent: it waits for all of them."""
    restart_policy: Annotated[RestartPolicy, MUTABLE] = RestartPolicy()
    """What happens when a worker fails."""
    metrics: Metrics | None = None
    """Where a program of your own serves metrics; absent: nowhere. The built-in trainer serves them by itself."""
    health: Health | None = None
    """When a run of the built-in trainer that does not get on is restarted."""

    cel_rules: ClassVar[tuple[Rule, ...]] = SPEC_RULES

    @property
    def parallel(self) -> Parallelism:
        """How model and data are split, with defaults."""
        return self.parallelism or Parallelism()

    @property
    def procs_per_worker(self) -> int:
        """Ranks per pod, with `auto` resolved.

        Raises:
            ValueError: the GPU limit is not a whole number.
        """
        if self.workers.procs_per_worker != "auto":
            return self.workers.procs_per_worker
        limits = self.workers.resources.limits or {}
        return max(1, int(limits.get(GPU_RESOURCE, 1)))

    @property
    def metrics_endpoint(self) -> Metrics | None:
        """Where each worker serves metrics; None if it does not."""
        return self.metrics if self.trainer is None else Metrics()

    @property
    def bad_steps(self) -> BadStepPolicy:
        """What follows a step without a good gradient, with defaults."""
        return (self.health or Health()).bad_steps

    @property
    def restarts_in_place(self) -> bool:
        """Whether the pods are to take orders to start another attempt."""
        wanted = self.restart_policy.in_place
        return self.trainer is not None if wanted is None else wanted

    @property
    def world_size(self) -> int:
        """Number of ranks that train: workers x processes per worker."""
        return self.workers.replicas * self.procs_per_worker

    @property
    def servers(self) -> int:
        """Number of parameter servers: 1 with that mode, else 0."""
        return int(self.parallel.data.mode == "parameterServer")

    @property
    def pods(self) -> int:
        """Number of pods of an attempt: the workers, and after them the parameter server."""
        return self.workers.replicas + self.servers

    def is_parameter_server(self, index: int) -> bool:
        """Whether the pod with an index is the parameter server."""
        return bool(self.servers) and index >= self.workers.replicas
