"""Topology domains: which workers of a group get nodes of one domain, and what they send out of it.

A domain is a set of nodes with a fast network among them, those with the same value of the label
spec.scheduling.topologyKey. Ranks of a tensor, expert or context group communicate in every layer, so their workers
belong into one domain. These axes vary fastest with the rank, so such workers are neighbours.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import product

from trainyard.base import ApiModel
from trainyard.mesh import AXES, Mesh, make_mesh
from trainyard.resource.spec import TrainingJobSpec
from trainyard.sizing.traffic import Traffic

INNER_AXES = ("context", "expert", "tensor")
"""Axes whose ranks communicate in every layer: the last ones of the mesh."""


class Domain(ApiModel):
    """One topology domain of a job, and its traffic with the others."""

    key: str
    """Label of nodes that names the domains."""
    count: int
    """Number of domains that the group needs at most."""
    workers: int
    """Number of workers that always are in one domain together."""
    bytes: int
    """Bytes per step that leave the domain if all other workers are outside of it; a lower limit if each step is over
    all samples."""


def domain_workers(spec: TrainingJobSpec) -> int:
    """Return the number of neighbouring workers that belong into one domain; 1 for a program of the user's own.

    Raises:
        ValueError: the axes do not divide the world size.
    """
    if spec.trainer is None:
        return 1
    mesh, procs = make_mesh(spec), spec.procs_per_worker
    # Where groups end inside of a worker, the next group belongs to the domain, too.
    return math.lcm(_inner(mesh), procs) // procs


def domain_index(spec: TrainingJobSpec, worker: int) -> int:
    """Return the number of the domain of a worker, from 0, as `domain_workers` divides the group."""
    return worker // domain_workers(spec)


def neighbour_domains(spec: TrainingJobSpec, domain: int) -> tuple[int, ...]:
    """Return the domains that hold the previous and the next pipeline stage of the ranks of a domain; often none.

    Stages are the outermost axis, so that those of neighbouring stages are a fixed number of domains apart.
    """
    if spec.trainer is None:
        return ()
    stages, domains = make_mesh(spec).pipeline, spec.workers.replicas // domain_workers(spec)
    # Stages that share a domain are as near as they can be.
    if stages == 1 or domains % stages:
        return ()
    apart = domains // stages
    return tuple(other for other in (domain - apart, domain + apart) if 0 <= other < domains)


def make_domain(spec: TrainingJobSpec, mesh: Mesh, traffic: Iterable[Traffic]) -> Domain | None:
    """Return the domains of a job of the built-in trainer; None without spec.scheduling.topologyKey.

    Args:
        spec: the spec.
        mesh: its mesh.
        traffic: what a rank sends in a step; the others of its domain send as much.
    """
    if spec.scheduling is None or spec.scheduling.topology_key is None:
        return None
    workers = domain_workers(spec)
    return Domain(
        key=spec.scheduling.topology_key,
        count=-(-spec.workers.replicas // workers),
        workers=workers,
        bytes=sum(leaving_bytes(entry, mesh, workers * spec.procs_per_worker) for entry in traffic),
    )


def leaving_bytes(traffic: Traffic, mesh: Mesh, ranks: int) -> int:
    """Return the bytes that leave a domain of so many neighbouring ranks in a step, for one kind of communication.

    Collectives pass along a ring in which the ranks of a domain are neighbours (Patarasuk and Yuan, 2009), so that each
    group of ranks sends the bytes of one rank out of the domain. In an all-to-all each rank sends to every other one.
    """
    # Each rank sends to the server, and to a stage in another domain.
    if traffic.axis == "server":
        return traffic.bytes * ranks
    inside, size = _members(mesh, traffic.axis.split(" x "), ranks)
    if inside == size:
        return 0
    groups = ranks // inside
    if traffic.collective == "all-to-all":
        return traffic.bytes * ranks * (size - inside) // (size - 1)
    if traffic.collective == "point-to-point":
        return traffic.bytes * ranks
    return traffic.bytes * groups


def _members(mesh: Mesh, axes: list[str], ranks: int) -> tuple[int, int]:
    """Return how many ranks of the group of rank 0 along some axes are among the first `ranks`, and its size."""
    group = list(_group(mesh, axes))
    return sum(rank < ranks for rank in group), len(group)


def _group(mesh: Mesh, axes: list[str]) -> Iterator[int]:
    """Yield the ranks that differ from rank 0 along some axes only."""
    strides = [math.prod(mesh.shape[place + 1 :]) for place in range(len(AXES))]
    sizes = zip(AXES, mesh.shape, strides, strict=True)
    steps = [range(0, size * stride, stride) for axis, size, stride in sizes if axis in axes]
    return (sum(offsets) for offsets in product(*steps))


def _inner(mesh: Mesh) -> int:
    """Return the number of ranks in which `INNER_AXES` form one group."""
    return math.prod(getattr(mesh, axis) for axis in INNER_AXES)
