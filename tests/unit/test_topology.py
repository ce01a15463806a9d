"""Topology domains of a layout: which workers belong together, and what leaves a domain."""

import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.builders import make_job, served, trainer_spec
from trainyard.estimate import estimate
from trainyard.mesh import Mesh, make_mesh
from trainyard.resource.job import TrainingJob
from trainyard.sizing.topology import Domain, domain_index, domain_workers, leaving_bytes, neighbour_domains
from trainyard.sizing.traffic import Traffic
from trainyard_cli.views.estimate import print_estimate

KEY = "topology.kubernetes.io/rack"


def layout(replicas: int, procs: int, *, family: str = "llama", **axes: Any) -> TrainingJob:
    trainer = trainer_spec(model={"name": family, "preset": "nano"}, batch={"global": 64})
    return make_job(
        replicas=replicas,
        workers={"procsPerWorker": procs},
        trainer=trainer,
        parallelism={"data": {"mode": "fsdp"}, **axes},
        scheduling={"topologyKey": KEY},
    )


@pytest.mark.parametrize(
    ("job", "workers"),
    [
        (make_job(replicas=8), 1),
        (layout(8, 4), 1),
        (layout(8, 4, tensor=4), 1),
        (layout(8, 4, tensor=2), 1),
        (layout(8, 2, tensor=4), 2),
        (layout(8, 1, tensor=2, context=2), 4),
        (layout(8, 2, family="moe", expert=4, context=2), 4),
        (layout(6, 2, tensor=3), 3),
    ],
    ids=["own program", "data", "worker", "part", "two workers", "two axes", "experts", "ends inside"],
)
def test_ranks_that_communicate_in_every_layer_share_a_domain(job: TrainingJob, workers: int) -> None:
    assert domain_workers(job.spec) == workers


@given(st.data())
def test_no_group_of_an_inner_axis_leaves_its_domain(data: st.DataObject) -> None:
    sizes = st.sampled_from([1, 2, 3, 4])
    tensor, context, procs = data.draw(sizes), data.draw(sizes), data.draw(sizes)
    replicas = data.draw(st.sampled_from([n for n in range(1, 49) if n * procs % (tensor * context) == 0]))
    job = layout(replicas, procs, tensor=tensor, context=context)
    mesh, workers = make_mesh(job.spec), domain_workers(job.spec)
    assert replicas % workers == 0, "all domains are complete"
    domains: dict[tuple[int, ...], set[int]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinate(rank)
        group = (at.pipeline, at.replicate, at.shard)
        domains.setdefault(group, set()).add(domain_index(job.spec, rank // procs))
    assert all(len(found) == 1 for found in domains.values())


def test_neighbours_are_the_domains_of_the_stages_before_and_after() -> None:
    job = layout(8, 1, tensor=2, pipeline={"stages": 2})
    assert [neighbour_domains(job.spec, domain) for domain in range(4)] == [(2,), (3,), (0,), (1,)]
    assert neighbour_domains(layout(4, 1).spec, 0) == ()
    assert neighbour_domains(layout(2, 4, pipeline={"stages": 4}).spec, 0) == (), "stages share a worker"


def sent(axis: str, collective: Any, size: int, each: int = 12) -> Traffic:
    return Traffic(axis=axis, ranks=size, collective=collective, what="x", times=1, bytes=each, crosses_workers=True)


MESH = Mesh(pipeline=2, replicate=2, shard=2, tensor=2)
"""16 ranks: 0 to 7 are the first pipeline stage, 0 and 1 are a tensor group."""


@pytest.mark.parametrize(
    ("traffic", "ranks", "leaving"),
    [
        (sent("tensor", "all-gather", 2), 2, 0),
        # Each of the two rings of a domain of two ranks passes its boundary once.
        (sent("shard", "all-gather", 2), 2, 24),
        # In a domain of four ranks the shards are inside, and four copies of the model are not.
        (sent("shard", "all-gather", 2), 4, 0),
        (sent("replicate", "all-reduce", 2), 4, 48),
        # Two of the four members of a ring are inside: two rings in four ranks.
        (sent("replicate x shard", "all-reduce", 4), 4, 24),
        # Every rank sends to the next stage by itself.
        (sent("pipeline", "point-to-point", 2), 4, 48),
        (sent("pipeline", "point-to-point", 2), 16, 0),
        # Two of three other ranks are outside.
        (sent("replicate x shard", "all-to-all", 4), 4, 32),
        (sent("server", "point-to-point", 16), 4, 48),
    ],
)
def test_what_leaves_a_domain(traffic: Traffic, ranks: int, leaving: int) -> None:
    assert leaving_bytes(traffic, MESH, ranks) == leaving


@given(st.lists(st.integers(1, 3), min_size=6, max_size=6), st.data())
def test_a_ring_leaves_a_domain_as_often_as_counted_rank_by_rank(sizes: list[int], data: st.DataObject) -> None:
    mesh = Mesh(pipeline=sizes[0], replicate=sizes[1], shard=sizes[2], context=sizes[3], expert=1, tensor=sizes[5])
    inner = mesh.context * mesh.tensor
    ranks = data.draw(st.sampled_from([inner * n for n in (1, mesh.shard, mesh.shard * mesh.replicate)]))
    axes = data.draw(st.sampled_from([("shard",), ("replicate",), ("shard", "context"), ("replicate", "context")]))
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(mesh.size):
        at = mesh.coordinate(rank)._asdict()
        groups.setdefault(tuple(at[axis] for axis in at if axis not in axes), []).append(rank)
    edges = 0
    for members in groups.values():
        ring = itertools.pairwise([*members, members[0]])
        edges += sum(a // ranks != b // ranks and a // ranks == 0 for a, b in ring)
    traffic = sent(" x ".join(axes), "all-gather", len(next(iter(groups.values()))), 1)
    assert leaving_bytes(traffic, mesh, ranks) == edges


def domain(job: TrainingJob) -> Domain | None:
    training = estimate(job).training
    assert training is not None
    return training.domain


def test_the_estimate_says_what_leaves_a_domain() -> None:
    found = domain(layout(8, 2, tensor=4))
    assert found is not None
    assert (found.key, found.count, found.workers) == (KEY, 4, 2)
    training = estimate(layout(8, 2, tensor=4)).training
    assert training is not None
    shards = sum(entry.bytes for entry in training.communication if entry.axis == "shard")
    # Four rings of shards, one for each rank of the tensor group.
    assert found.bytes == 4 * shards > 0
    assert domain(make_job(trainer=trainer_spec())) is None


def test_nothing_leaves_the_only_domain() -> None:
    found = domain(layout(4, 1, tensor=4))
    assert found is not None
    assert (found.count, found.workers, found.bytes) == (1, 4, 0)


def test_gradients_leave_for_a_parameter_server() -> None:
    found = domain(make_job(scheduling={"topologyKey": KEY}, replicas=1, **served()))
    assert found is not None
    assert found.count == 1
    assert found.bytes > 0


def printed(job: TrainingJob) -> str:
    output = io.StringIO()
    print_estimate(estimate(job), Console(file=output, width=200))
    return output.getvalue()


def test_the_command_prints_what_leaves_a_domain() -> None:
    found = domain(layout(8, 2, tensor=4))
    assert found is not None
    line = f"topology: 2 workers in each of up to 4 domains of {KEY}; "
    assert line in printed(layout(8, 2, tensor=4))
    assert "leave such a domain in one step" in printed(layout(8, 2, tensor=4))
    assert f"topology: all workers get nodes of one domain of {KEY}" in printed(layout(4, 1, tensor=4))
    assert "topology" not in printed(make_job(trainer=trainer_spec()))
