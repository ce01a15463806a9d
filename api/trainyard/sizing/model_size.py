"""Size of the part of a model that a rank computes with, and the cost of a token."""

from trainyard.config import RunConfig
from trainyard.models.family import ModelPart, RankParameters
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count, stages_of_rank


def flops_per_token(config: RunConfig) -> int:
    """Return the floating-point operations of training on one token, over all ranks and with nothing recomputed.

    For a table it is the cost of one row.
    """
    return config.family.flops_per_token(config.model)


def rank_parameters(config: RunConfig, place: int) -> RankParameters:
    """Return the sizes of the parameters on the ranks at one place of the pipeline, counted from 0."""
    family, pipeline = config.family, config.parallelism.pipeline
    stages = stages_of_rank(pipeline, place)
    layers = family.layers(config.model)
    part = ModelPart(
        stages=tuple(len(layers_of_stage(pipeline, layers, stage)) for stage in stages),
        first=0 in stages,
        last=stage_count(pipeline) - 1 in stages,
        tensor=config.mesh.tensor,
        expert=config.mesh.expert,
    )
    return family.rank_parameters(config.model, part)
