"""The device mesh: coordinates of ranks, and sizes that follow from a spec."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_manifest, trainer_spec
from tests.support.samples import SAMPLES, sample
from trainyard.admission import admit
from trainyard.mesh import AXES, Mesh, make_mesh

SIZES = st.integers(1, 4)
MESHES = st.builds(Mesh, pipeline=SIZES, replicate=SIZES, shard=SIZES, context=SIZES, expert=SIZES, tensor=SIZES)


@given(MESHES)
def test_every_rank_has_its_own_coordinate(mesh: Mesh) -> None:
    places = {mesh.coordinate(rank) for rank in range(mesh.size)}
    assert len(places) == mesh.size
    assert all(0 <= at < size for place in places for at, size in zip(place, mesh.shape, strict=True))


@given(MESHES)
def test_data_parallel_ranks_have_equal_shares_of_the_batch(mesh: Mesh) -> None:
    by_share: dict[int, int] = {}
    for rank in range(mesh.size):
        share = mesh.data_index(rank)
        by_share[share] = by_share.get(share, 0) + 1
    assert by_share == dict.fromkeys(range(mesh.data), mesh.size // mesh.data)


def test_ranks_of_tensor_expert_and_context_are_neighbours() -> None:
    mesh = Mesh(pipeline=2, replicate=2, context=2, tensor=2)
    assert [mesh.coordinate(rank)[-3:] for rank in range(4)] == [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    assert AXES[-3:] == ("context", "expert", "tensor")
    assert {mesh.coordinate(rank).pipeline for rank in range(8)} == {0}


@pytest.mark.parametrize(
    ("replicas", "procs", "parallelism", "text"),
    [
        (1, 1, {}, "one rank"),
        (4, 1, {}, "replicate 4"),
        (2, 4, {"data": {"mode": "fsdp"}}, "shard 8"),
        (2, 4, {"data": {"mode": "hsdp"}}, "replicate 2 x shard 4"),
        (2, 4, {"data": {"mode": "hsdp"}, "tensor": 2}, "replicate 2 x shard 2 x tensor 2"),
        (4, 2, {"data": {"mode": "hsdp", "shard": 4}}, "replicate 2 x shard 4"),
        (2, 4, {"expert": 4}, "replicate 2 x expert 4"),
        (2, 4, {"data": {"mode": "fsdp"}, "expert": 4}, "shard 2 x expert 4"),
        (4, 4, {"data": {"mode": "hsdp"}, "expert": 2}, "replicate 4 x shard 2 x expert 2"),
        (2, 4, {"context": 2, "expert": 2, "pipeline": {"stages": 2}}, "pipeline 2 x context 2 x expert 2"),
        (2, 4, {"tensor": 2, "context": 2, "pipeline": {"stages": 2}}, "pipeline 2 x context 2 x tensor 2"),
    ],
)
def test_the_data_parallel_size_is_the_rest_of_the_world_size(
    replicas: int, procs: int, parallelism: dict[str, object], text: str
) -> None:
    workers = {"procsPerWorker": procs}
    trainer = trainer_spec(model={"name": "moe" if "expert" in parallelism else "llama", "preset": "nano"})
    job = admit(make_manifest(replicas=replicas, workers=workers, trainer=trainer, parallelism=parallelism))
    mesh = make_mesh(job.spec)
    assert str(mesh) == text
    assert mesh.size == replicas * procs


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_admitted(name: str) -> None:
    assert admit(sample(name)).metadata.name == name
