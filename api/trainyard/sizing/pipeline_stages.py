"""Assignment of pipeline stages to ranks, and of layers to stages."""

from trainyard.resource.parallelism import VIRTUAL_STAGES, PipelineParallelism


def stage_count(pipeline: PipelineParallelism) -> int:
    """Return the number of stages of the model; some schedules give each rank two."""
    return pipeline.stages * VIRTUAL_STAGES[pipeline.schedule] if pipeline.stages > 1 else 1


def stages_of_rank(pipeline: PipelineParallelism, place: int) -> list[int]:
    """Return the stages of the rank at a place in the pipeline, counted from 0.

    They are every `stages`-th one; with ZBV they run down the ranks and up again in the shape of a V.
    """
    total = stage_count(pipeline)
    if pipeline.schedule == "ZBV" and total > 1:
        return [place, total - 1 - place]
    return list(range(place, total, pipeline.stages))


def layers_of_stage(pipeline: PipelineParallelism, layers: int, stage: int) -> range:
    """Return the layers of a stage.

    Stages in the middle get one layer more where the division has a remainder, since the first and the last stage also
    hold the embedding and the head.
    """
    total = stage_count(pipeline)
    each, rest = divmod(layers, total)
    first_larger = (total - rest) // 2
    start = stage * each + min(max(stage - first_larger, 0), rest)
    larger = first_larger <= stage < first_larger + rest
    return range(start, start + each + larger)
