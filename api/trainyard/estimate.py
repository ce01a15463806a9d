"""Estimate of a TrainingJob from its manifest alone: ranks, parameters, memory, computation and communication."""

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.mesh import AXES
from trainyard.resolve import resolve
from trainyard.resource.devices import devices
from trainyard.resource.job import TrainingJob
from trainyard.resource.parallelism import VIRTUAL_STAGES
from trainyard.resource.spec import ResourceList
from trainyard.sizing.advice import memory_problems
from trainyard.sizing.fit import Fit, fit, host_fit, server_fit, uses_gpus
from trainyard.sizing.model_size import adapter_scalars, flops_per_token, parameters, rank_parameters
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count
from trainyard.sizing.placement import placement
from trainyard.sizing.topology import Domain, make_domain
from trainyard.sizing.traffic import Traffic, crosses_workers, rank_traffic
from trainyard.sizing.warnings import warnings


class Group(ApiModel):
    """The group of workers."""

    replicas: int
    """Number of worker pods."""
    procs_per_worker: int
    """Number of ranks in each worker."""
    ranks: int
    """Number of ranks of the job."""
    device: str
    """Device that each rank computes on: cpu, gpu, or the resource that is another or an unknown accelerator."""
    limits: ResourceList
    """Resource limits of each worker."""


class Axis(ApiModel):
    """One axis of the device mesh."""

    name: str
    """pipeline, replicate, shard, context, expert or tensor."""
    size: int
    """Number of ranks along the axis."""
    crosses_workers: bool
    """Whether its ranks are spread over more than one worker."""


class Work(ApiModel):
    """Work of one optimizer step."""

    samples: int | None
    """Number of samples over all ranks; None: all samples of the data."""
    tokens: int | None
    """Number of predictions over all ranks: tokens of a text, or rows of a table."""
    micro_batch: int
    """Number of samples in one forward pass of a rank."""
    micro_batches: int
    """Number of forward passes of a rank; a lower limit if each step is over all samples."""
    flops: float | None
    """Floating-point operations over all ranks (`flops_per_token`)."""
    stages: tuple[int, ...] = ()
    """Number of layers in each pipeline stage, in order; some schedules give a rank two stages."""
    bubble: float = 0.0
    """Fraction of the time that a rank waits for others in the pipeline (the bubble)."""


class TrainingEstimate(ApiModel):
    """Estimate of the built-in trainer."""

    parameters: int
    """Number of scalars of the model."""
    trained_parameters: int
    """Number of scalars that are trained: all, or those of adapters."""
    active_parameters: int
    """Number of scalars that one token passes through: of experts, only those that it chooses."""
    rank_parameters: int
    """Number of scalars held by the rank that holds the most."""
    axes: tuple[Axis, ...]
    """Axes of the device mesh with more than one rank, outermost first."""
    work: Work
    """Work of one optimizer step."""
    fit: Fit
    """Memory of each GPU, or of workers without GPUs."""
    host: Fit | None = None
    """Host memory of workers with GPUs."""
    server: Fit | None = None
    """Memory of the parameter server, if there is one."""
    communication: tuple[Traffic, ...]
    """Traffic in one step of the rank that needs the most memory."""
    domain: Domain | None = None
    """Topology domains of the group, with spec.scheduling.topologyKey."""


class Estimate(ApiModel):
    """Estimate of a job."""

    name: str
    """Name of the job."""
    namespace: str
    """Namespace of the job."""
    workers: Group
    """Group of workers."""
    training: TrainingEstimate | None = None
    """Estimate of the built-in trainer; None for a program or a model of the user's own."""
    warnings: tuple[str, ...] = ()
    """What makes the job slower or larger than it has to be: field, reason and fix."""
    problems: tuple[str, ...] = ()
    """Why the job would be refused: field, rule and fix."""


def estimate(job: TrainingJob) -> Estimate:
    """Return the estimate of an admitted job.

    Raises:
        ValueError: the layout has problems (see `trainyard.resolve.layout_problems`).
    """
    spec = job.spec
    group = Group(
        replicas=spec.workers.replicas,
        procs_per_worker=spec.procs_per_worker,
        ranks=spec.world_size,
        device="gpu" if uses_gpus(spec) else next(iter(devices(spec.workers.resources.limits or {})), "cpu"),
        limits=spec.workers.resources.limits or {},
    )
    fields = {"name": job.metadata.name, "namespace": job.metadata.namespace, "workers": group}
    if spec.trainer is None:
        return Estimate(**fields)
    config = resolve(job)
    if not config.family.estimated:
        return Estimate(**fields)
    if not config.sizes_known:
        return Estimate(
            **fields,
            warnings=(
                "spec.trainer.model.from: only the workers know the sizes of the model, so that its memory is not "
                "estimated; set the fields that `trainyard import` prints for the folder",
            ),
        )
    fields["problems"] = tuple(memory_problems(spec, config))
    fields["warnings"] = tuple(warnings(spec, config))
    return Estimate(**fields, training=_training(job, config))


def _training(job: TrainingJob, config: RunConfig) -> TrainingEstimate:
    procs, mesh = job.spec.procs_per_worker, config.mesh
    worker_fit = fit(job.spec, config)
    family, model = config.family, config.model
    held = max(placement(config).held(rank_parameters(config, place)) for place in range(mesh.pipeline))
    communication = tuple(rank_traffic(config, worker_fit.place, procs))
    return TrainingEstimate(
        parameters=parameters(config),
        trained_parameters=adapter_scalars(config) * family.layers(model) or parameters(config),
        active_parameters=family.active_parameters(model) + adapter_scalars(config) * family.layers(model),
        rank_parameters=held,
        axes=tuple(
            Axis(name=name, size=size, crosses_workers=crosses_workers(mesh, name, procs))
            for name, size in zip(AXES, mesh.shape, strict=True)
            if size > 1
        ),
        work=_work(config),
        fit=worker_fit,
        host=host_fit(job.spec, config),
        server=server_fit(job.spec, config),
        communication=communication,
        domain=make_domain(job.spec, mesh, communication),
    )


def _work(config: RunConfig) -> Work:
    samples = config.trainer.batch.global_
    tokens = None if samples is None else samples * config.tokens_per_sample
    stages: tuple[int, ...] = ()
    layers, pipeline = config.family.layers(config.model), config.parallelism.pipeline
    if config.mesh.pipeline > 1:
        stages = tuple(len(layers_of_stage(pipeline, layers, stage)) for stage in range(stage_count(pipeline)))
    return Work(
        samples=samples,
        tokens=tokens,
        micro_batch=config.micro_batch,
        micro_batches=config.accumulation,
        flops=None if tokens is None else float(flops_per_token(config)) * tokens,
        stages=stages,
        bubble=_bubble(config),
    )


def _bubble(config: RunConfig) -> float:
    """Return the bubble (S - 1) / (v M + S - 1): S ranks, v stages on each, M micro-batches (Narayanan et al., 2021).

    ZBV has none, if a forward pass takes as long as each half of a backward pass (Qi et al., 2024).
    """
    ranks, schedule = config.mesh.pipeline, config.parallelism.pipeline.schedule
    if schedule == "ZBV" or ranks == 1:
        return 0.0
    return (ranks - 1) / (VIRTUAL_STAGES[schedule] * config.accumulation + ranks - 1)
