"""Which stages of a pipeline a rank has, and which layers a stage."""

from trainyard.resource.parallelism import VIRTUAL_STAGES, PipelineParallelism


def stage_count(pipeline: PipelineParallelism) -> int:
    """Stages of the model; some schedules give each rank two."""
    return pipeline.stages * VIRTUAL_STAGES[pipeline.schedule] if pipeline.stages > 1 else 1


def stages_of_rank(pipeline: PipelineParallelism, place: int) -> list[int]:
    """Stages of the rank at a place in the pipeline: every `stages`-th, or with ZBV down and up again in a V."""
    total = stage_count(pipeline)
    if pipeline.schedule == "ZBV" and total > 1:
        return [place, total - 1 - place]
    return list(range(place, total, pipeline.stages))


def layers_of_stage(pipeline: PipelineParallelism, layers: int, stage: int) -> range:
    """Layers of a stage. What cannot be divided goes to the stages in the middle: the first and the last also have
    embedding and head.
    """
    total = stage_count(pipeline)
    each, rest = divmod(layers, total)
    first_larger = (total - rest) // 2
    start = stage * each + min(max(stage - first_larger, 0), rest)
    larger = first_larger <= stage < first_larger + rest
    return range(start, start + each + larger)
