"""What a TrainingJob would be, from its manifest alone: ranks, parameters, memory, computation, communication."""

from typing import Literal

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard.mesh import AXES
from trainyard.resolve import resolve
from trainyard.resource.job import TrainingJob
from trainyard.resource.parallelism import VIRTUAL_STAGES
from trainyard.resource.spec import ResourceList
from trainyard.sizing.fit import Fit, fit, memory_problems, server_fit, uses_gpus
from trainyard.sizing.model_size import (
    active_parameters,
    flops_per_token,
    mlp_parameters,
    rank_parameters,
    transformer_parameters,
)
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count
from trainyard.sizing.placement import placement
from trainyard.sizing.traffic import Traffic, communication, crosses_workers


class Group(ApiModel):
    """The workers."""

    replicas: int
    """Worker pods."""
    procs_per_worker: int
    """Ranks in each."""
    ranks: int
    """Ranks in all."""
    device: Literal["cpu", "gpu"]
    """What the ranks compute on."""
    limits: ResourceList
    """Limits of each worker's resources."""


class Axis(ApiModel):
    """One axis of the mesh of ranks."""

    name: str
    """pipeline, replicate, shard, context, expert or tensor."""
    size: int
    """Ranks along it."""
    crosses_workers: bool
    """Whether its ranks are in more than one worker."""


class Work(ApiModel):
    """What one optimizer step is."""

    samples: int | None
    """Samples over all ranks; None: all that there are (gd)."""
    tokens: int | None
    """Predictions over all ranks: tokens of text, or samples of a table."""
    micro_batch: int
    """Samples of one forward pass of a rank."""
    micro_batches: int
    """Forward passes of a rank; with gd at least."""
    flops: float | None
    """Floating-point operations over all ranks (`flops_per_token`)."""
    stages: tuple[int, ...] = ()
    """Layers of each pipeline stage, in order; some schedules give a rank two stages."""
    bubble: float = 0.0
    """Share of the time that a rank waits in the pipeline."""


class TrainingEstimate(ApiModel):
    """What the built-in trainer would do."""

    parameters: int
    """Trained scalars of the whole model."""
    active_parameters: int
    """Those of them that a token goes through: of a moe only the experts that it chooses."""
    rank_parameters: int
    """Scalars that the rank with the most of them holds."""
    axes: tuple[Axis, ...]
    """Axes of the mesh with more than one rank, outermost first."""
    work: Work
    """One step."""
    fit: Fit
    """Memory of the workers."""
    server: Fit | None = None
    """Memory of the parameter server, if there is one."""
    communication: tuple[Traffic, ...]
    """What the rank that needs the most memory sends in a step."""


class Estimate(ApiModel):
    """A job as it would be."""

    name: str
    """Name of the job."""
    namespace: str
    """Namespace of the job."""
    workers: Group
    """The workers."""
    training: TrainingEstimate | None = None
    """None for a program of the user's own, of which nothing is known."""
    problems: tuple[str, ...] = ()
    """Why it would be refused: field, rule and fix."""


def estimate(job: TrainingJob) -> Estimate:
    """What an admitted job would be.

    Raises:
        ValueError: its layout has problems (see `trainyard.resolve.layout_problems`).
    """
    spec = job.spec
    group = Group(
        replicas=spec.workers.replicas,
        procs_per_worker=spec.procs_per_worker,
        ranks=spec.world_size,
        device="gpu" if uses_gpus(spec) else "cpu",
        limits=spec.workers.resources.limits or {},
    )
    known = {"name": job.metadata.name, "namespace": job.metadata.namespace, "workers": group}
    if spec.trainer is None:
        return Estimate(**known)
    config = resolve(job)
    known["problems"] = tuple(memory_problems(spec, config))
    return Estimate(**known, training=_training(job, config))


def _training(job: TrainingJob, config: RunConfig) -> TrainingEstimate:
    procs, mesh = job.spec.procs_per_worker, config.mesh
    found = fit(job.spec, config)
    if config.model.name == "mlp":
        whole = active = mlp_parameters(config)
        held = whole // placement(config).shards
    else:
        whole, active = transformer_parameters(config.transformer), active_parameters(config.transformer)
        held = max(placement(config).held(rank_parameters(config, place)) for place in range(mesh.pipeline))
    return TrainingEstimate(
        parameters=whole,
        active_parameters=active,
        rank_parameters=held,
        axes=tuple(
            Axis(name=name, size=size, crosses_workers=crosses_workers(mesh, name, procs))
            for name, size in zip(AXES, mesh.shape, strict=True)
            if size > 1
        ),
        work=_work(config),
        fit=found,
        server=server_fit(job.spec, config),
        communication=tuple(communication(config, found.place, procs)),
    )


def _work(config: RunConfig) -> Work:
    samples = config.trainer.batch.global_
    tokens = None if samples is None else samples * config.tokens_per_sample
    stages: tuple[int, ...] = ()
    if config.model.name != "mlp":
        model, pipeline = config.transformer, config.parallelism.pipeline
        count = stage_count(pipeline)
        stages = tuple(len(layers_of_stage(pipeline, model.layers, stage)) for stage in range(count))
    return Work(
        samples=samples,
        tokens=tokens,
        micro_batch=config.micro_batch,
        micro_batches=config.accumulation,
        flops=None if tokens is None else float(flops_per_token(config)) * tokens,
        stages=stages if config.mesh.pipeline > 1 else (),
        bubble=_bubble(config),
    )


def _bubble(config: RunConfig) -> float:
    """(S - 1) / (v M + S - 1) of S stages in a row, M micro-batches, v stages per rank (Narayanan et al., 2021).

    ZBV: none, where a forward pass takes as long as each half of a backward pass (Qi et al., 2024).
    """
    ranks, schedule = config.mesh.pipeline, config.parallelism.pipeline.schedule
    if schedule == "ZBV" or ranks == 1:
        return 0.0
    return (ranks - 1) / (VIRTUAL_STAGES[schedule] * config.accumulation + ranks - 1)
