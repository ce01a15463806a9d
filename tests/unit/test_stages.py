"""Layers are assigned to pipeline stages evenly and in order; the first and the last stage get the remainder last."""

from hypothesis import given
from hypothesis import strategies as st

from trainyard.resource.parallelism import VIRTUAL_STAGES, PipelineParallelism
from trainyard.sizing.pipeline_stages import layers_of_stage, stage_count, stages_of_rank

PIPELINES = st.builds(PipelineParallelism, stages=st.integers(1, 8), schedule=st.sampled_from(list(VIRTUAL_STAGES)))


@given(PIPELINES, st.integers(0, 60))
def test_each_layer_is_in_one_stage_in_order(pipeline: PipelineParallelism, more: int) -> None:
    total = stage_count(pipeline)
    layers = [layers_of_stage(pipeline, total + more, stage) for stage in range(total)]
    assert [layer for part in layers for layer in part] == list(range(total + more))
    sizes = [len(part) for part in layers]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes[0], sizes[-1]) == min(sizes) or len(set(sizes)) == 1 or sizes.count(min(sizes)) == 1


@given(PIPELINES)
def test_each_stage_is_on_one_rank(pipeline: PipelineParallelism) -> None:
    assigned = [stage for place in range(pipeline.stages) for stage in stages_of_rank(pipeline, place)]
    assert sorted(assigned) == list(range(stage_count(pipeline)))


def test_zbv_turns_at_the_last_rank() -> None:
    pipeline = PipelineParallelism(stages=3, schedule="ZBV")
    assert [stages_of_rank(pipeline, place) for place in range(3)] == [[0, 5], [1, 4], [2, 3]]
