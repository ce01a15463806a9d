"""Size of the part of a model that a rank computes with, and the cost of a token."""

from dataclasses import replace

from trainyard.config import RunConfig
from trainyard.models.family import FULL_BYTES, HALF_BYTES, ModelPart, RankParameters
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count, stages_of_rank


def flops_per_token(config: RunConfig) -> int:
    """Return the floating-point operations of training on one token, over all ranks and with nothing recomputed.

    For a table it is the cost of one row. Of the 6 operations of a parameter (2 forward, 4 backward) 2 are for its
    gradient, which a frozen one has not.
    """
    family, model = config.family, config.model
    operations = family.flops_per_token(model)
    adapters = adapter_scalars(config) * family.layers(model)
    return operations - 2 * family.multiplied(model) + 6 * adapters if adapters else operations


def adapter_scalars(config: RunConfig) -> int:
    """Return the scalars of the adapters of one block; 0 if all parameters are trained."""
    lora = config.trainer.model.lora
    if lora is None:
        return 0
    shapes = config.family.matrix_shapes(config.model)
    return sum(lora.rank * sum(shapes[target]) for target in lora.targets)


def parameters(config: RunConfig) -> int:
    """Return the number of scalars of the whole model, adapters included."""
    family, model = config.family, config.model
    return family.parameters(model) + adapter_scalars(config) * family.layers(model)


def frozen_bytes(config: RunConfig) -> int:
    """Return the bytes of a scalar that is not trained: it is held in the type in which it is computed with."""
    return HALF_BYTES if config.trainer.precision == "bfloat16" else FULL_BYTES


def trained_parameters(config: RunConfig, place: int) -> RankParameters:
    """Return the sizes of those of the `rank_parameters` that are trained: all, or only adapters."""
    own, adapters, lora = rank_parameters(config, place), adapter_scalars(config), config.trainer.model.lora
    if lora is None:
        return own
    shapes = config.family.matrix_shapes(config.model)
    largest = max(lora.rank * max(shapes[target]) for target in lora.targets)
    return RankParameters(
        layers=own.layers,
        chunk_layers=own.chunk_layers,
        block=adapters,
        matrices=own.layers * adapters,
        largest=largest,
        largest_matrix=largest,
    )


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
    own = family.rank_parameters(config.model, part)
    return replace(own, block=own.block + adapter_scalars(config))
