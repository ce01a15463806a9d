"""`spec` of a TrainingJob: the workers, what they run, and what happens when they fail."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainyard.base import ApiModel, Rule, opaque
from trainyard.cel import (
    CONTEXT,
    EXPERT,
    IF_GPT,
    IF_MOE,
    MODEL_PARALLEL,
    NO_V,
    SERVES,
    STAGES,
    TENSOR,
    TWO_STAGES,
    Layout,
)
from trainyard.checkpoint import Checkpoint
from trainyard.elastic import ELASTIC_RULES, Elastic
from trainyard.health import BadSteps, Health
from trainyard.models import size_in_cel
from trainyard.parallelism import Parallelism
from trainyard.restart import RestartPolicy
from trainyard.scrape import Metrics
from trainyard.training import TrainerSpec

Quantity = Annotated[
    str | int,
    Field(
        union_mode="left_to_right",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
ResourceList = Annotated[dict[str, Quantity], Field(max_length=32)]

GPU_RESOURCE = "nvidia.com/gpu"

_LAYOUT = Layout("self.workers.replicas")


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
    spec: dict[str, Any] = opaque(
        "Any field of a pod's spec: nodeSelector, tolerations, volumes, initContainers, ... The container "
        "named worker is merged with the operator's own (volumeMounts, securityContext, ...); other "
        "containers are added as they are."
    )


class Workers(ApiModel):
    """The group of pods that trains one model together."""

    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
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

    rules: ClassVar[tuple[Rule, ...]] = (
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


class Server(ApiModel):
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
    value_from: Annotated[
        dict[str, Any] | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = None
    """Source of the value: fieldRef, secretKeyRef, ... as in a pod."""


class LocalObjectReference(ApiModel):
    """The name of an object in the job's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name."""


class TrainingJobSpec(ApiModel):
    """What to train, with which workers."""

    suspend: bool = False
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
    server: Server | None = None
    """The pod of the parameter server, with parallelism.data.mode parameterServer."""
    checkpoint: Checkpoint | None = None
    """Where the state of the run is kept. Without it a restart begins at the first step."""
    elastic: Elastic | None = None
    """With how few workers the job trains while there is no room for all; absent: it waits for all of them."""
    restart_policy: RestartPolicy = RestartPolicy()
    """What happens when a worker fails."""
    metrics: Metrics | None = None
    """Where a program of your own serves metrics; absent: nowhere. The built-in trainer serves them by itself."""
    health: Health | None = None
    """When a run of the built-in trainer that does not get on is restarted."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.command) != has(self.trainer)",
            "spec: exactly one of command (your own program) and trainer (the built-in one) must be given; "
            "add one or remove the other",
        ),
        Rule(
            "!has(self.args) || has(self.command)",
            "spec.args: needs spec.command; the built-in trainer takes no arguments, set its fields in spec.trainer",
        ),
        Rule(
            "has(self.image) || has(self.trainer)",
            "spec.image: is required with spec.command; name the image that holds your program",
        ),
        Rule(
            "!has(self.parallelism) || has(self.trainer)",
            "spec.parallelism: needs spec.trainer; a program of your own lays out its ranks by itself",
        ),
        Rule(
            "!has(self.metrics) || has(self.command)",
            "spec.metrics: is about spec.command; the built-in trainer serves its metrics by itself, remove it",
        ),
        Rule(
            "!has(self.health) || has(self.trainer)",
            "spec.health: needs spec.trainer; a program of your own reports no steps, remove it",
        ),
        Rule(
            "has(self.trainer) || !has(self.checkpoint) || !(has(self.checkpoint.everySteps) ||"
            " has(self.checkpoint.everySeconds) || has(self.checkpoint.keep) || has(self.checkpoint.async))",
            "spec.checkpoint: everySteps, everySeconds, keep and async are the built-in trainer's; remove them, a "
            "program of your own finds the volume at TRAINYARD_CHECKPOINTS and writes to it as it likes",
        ),
        Rule(
            f"!has(self.server) || {SERVES}",
            "spec.server: is only for spec.parallelism.data.mode parameterServer; remove it, or set that mode",
        ),
        Rule(
            f"!({SERVES}) || ({MODEL_PARALLEL} * {EXPERT} == 1"
            " && (!has(self.trainer) || self.trainer.model.name != 'moe'))",
            "spec.parallelism.data.mode: parameterServer is for a gpt or mlp that each worker holds whole; remove "
            "tensor, context, expert and pipeline, or choose ddp, fsdp or hsdp",
        ),
        Rule(
            _LAYOUT.mesh_fits,
            "spec.parallelism: tensor x context x pipeline.stages must divide the world size (workers.replicas x "
            "workers.procsPerWorker); change an axis or the number of workers",
        ),
        Rule(
            _LAYOUT.shard_fits,
            "spec.parallelism.data.shard: must divide the number of data-parallel ranks (world size / (tensor x "
            "context x pipeline.stages)) over expert; choose a divisor",
        ),
        Rule(
            _LAYOUT.expert_fits,
            "spec.parallelism.expert: must divide the number of data-parallel ranks (world size / (tensor x context x "
            "pipeline.stages)), which hold the experts together; choose a divisor, or change the number of workers",
        ),
        Rule(
            f"{EXPERT} == 1 || !has(self.trainer) || self.trainer.model.name == 'moe'",
            "spec.parallelism.expert: only a moe has experts; remove it, or set spec.trainer.model.name: moe",
        ),
        Rule(
            f"{IF_MOE} {size_in_cel('experts')} % {EXPERT} == 0",
            "spec.parallelism.expert: must divide the model's experts, since each rank holds equally many; lower it, "
            "or change spec.trainer.model.experts",
        ),
        Rule(
            f"{IF_MOE} {size_in_cel('expertsPerToken')} <= {size_in_cel('experts')}",
            "spec.trainer.model.expertsPerToken: must be at most the model's experts; lower it, or raise "
            "spec.trainer.model.experts",
        ),
        Rule(
            f"{TENSOR} == 1 || !has(self.trainer) || self.trainer.model.name != 'moe'",
            "spec.parallelism.tensor: does not split the experts of a moe; remove it, and set spec.parallelism.expert "
            "instead, which does",
        ),
        Rule(
            "!has(self.health) || !has(self.health.straggler) || self.health.straggler.action != 'Replace'"
            " || has(self.checkpoint)",
            "spec.health.straggler.action: Replace starts the group anew, and without checkpoints from the first step; "
            "add spec.checkpoint, or choose Report",
        ),
        Rule(
            "!has(self.health) || self.health.nonFinite.action != 'Rollback' || has(self.checkpoint)",
            "spec.health.nonFinite.action: Rollback goes back to a checkpoint, but none are written; add "
            "spec.checkpoint, or choose Skip",
        ),
        Rule(
            _LAYOUT.batch_fits,
            "spec.trainer.batch.global: must be a multiple of the number of data-parallel ranks (workers.replicas x "
            "workers.procsPerWorker / (tensor x context x pipeline.stages)); change the batch or the number of workers",
        ),
        Rule(
            _LAYOUT.micro_batch_fits,
            "spec.trainer.batch.micro: the share of one rank (batch.global / data-parallel ranks) must be a multiple "
            "of it; choose a divisor, or auto",
        ),
        Rule(
            _LAYOUT.pipeline_fits,
            "spec.trainer.batch: a pipeline needs a multiple of its stages as micro-batches per step (batch.global / "
            "data-parallel ranks / batch.micro); change the batch or spec.parallelism.pipeline.stages",
        ),
        Rule(
            f"{IF_GPT} ({size_in_cel('heads')} % ({TENSOR} * {CONTEXT}) == 0 &&"
            f" {size_in_cel('kvHeads')} % ({TENSOR} * {CONTEXT}) == 0)",
            "spec.parallelism: tensor x context must divide the model's heads and kvHeads, since each rank computes "
            "whole heads; lower one of them, or choose another spec.trainer.model.heads or kvHeads",
        ),
        Rule(
            f"{IF_GPT} {size_in_cel('ffnDim')} % {TENSOR} == 0",
            "spec.parallelism.tensor: must divide the model's ffnDim; lower it, or change spec.trainer.model.ffnDim",
        ),
        Rule(
            f"{IF_GPT} (self.trainer.data.tokenizer == 'byte' ? 256 : self.trainer.data.vocabSize) % {TENSOR} == 0",
            "spec.parallelism.tensor: must divide the vocabulary (256 for bytes, else spec.trainer.data.vocabSize); "
            "lower it, or change the vocabulary",
        ),
        Rule(
            f"{IF_GPT} self.trainer.data.sequenceLength % ({TENSOR} * {CONTEXT}) == 0",
            "spec.trainer.data.sequenceLength: must be a multiple of tensor x context, which split the sequence; "
            "change it or the axes",
        ),
        Rule(
            f"{IF_GPT} {size_in_cel('layers')} >= {STAGES} * (has(self.parallelism) &&"
            f" self.parallelism.pipeline.schedule in {TWO_STAGES} && self.parallelism.pipeline.stages > 1"
            " ? 2 : 1)",
            "spec.parallelism.pipeline.stages: each stage needs a layer, and with Interleaved1F1B and ZBV each rank "
            "has two stages; use fewer stages, another schedule, or more layers",
        ),
        Rule(
            f"!has(self.trainer) || self.trainer.data.heldOut == 0.0 || {NO_V}",
            "spec.parallelism.pipeline.schedule: ZBV cannot evaluate (torch 2.15 has no forward pass alone for it); "
            "choose Interleaved1F1B, or remove spec.trainer.data.heldOut",
        ),
        Rule(
            f"!has(self.trainer) || self.trainer.activationCheckpointing != 'selective' || {NO_V}",
            "spec.trainer.activationCheckpointing: selective does not work with ZBV, whose backward pass has two "
            "parts; choose full, none, or another spec.parallelism.pipeline.schedule",
        ),
        Rule(
            f"!has(self.trainer) || !self.trainer.compile || ({TENSOR} * {CONTEXT} == 1 && ({NO_V}))",
            "spec.trainer.compile: does not work with tensor, context or the schedule ZBV (torch 2.15 cannot "
            "differentiate the compiled blocks then); remove it, or choose another layout",
        ),
        Rule(
            f"!has(self.trainer) || self.trainer.model.name != 'mlp' || {MODEL_PARALLEL} == 1",
            "spec.parallelism: an mlp is too small to split, only data parallelism has a use; remove tensor, context "
            "and pipeline, or train a gpt",
        ),
        *ELASTIC_RULES,
    )

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
    def scraped(self) -> Metrics | None:
        """Where each worker serves metrics; None if it does not."""
        return self.metrics if self.trainer is None else Metrics()

    @property
    def bad_steps(self) -> BadSteps:
        """What follows a step without a good gradient, with defaults."""
        return (self.health or Health()).non_finite

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

    def serves(self, index: int) -> bool:
        """Whether the pod with an index is the parameter server."""
        return bool(self.servers) and index >= self.workers.replicas
