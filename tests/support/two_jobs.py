"""Pairs of jobs that each need a whole node, which block each other if both get a part of it."""

import asyncio
import random
from typing import Any

from tests.builders import make_manifest
from tests.support.fake_nodes import BoundPods, bound_pods_run, nodes
from tests.support.kube import Namespace

WORKERS = 4
ONE_CPU = {"requests": {"cpu": 1}}


async def pairs_succeed(namespace: Namespace, rounds: int, *, spread: float, **fields: Any) -> BoundPods:
    """Let two jobs arrive at random moments in each round, on a node of its own, until all have succeeded.

    Args:
        namespace: namespace of the jobs.
        rounds: number of pairs, which are there at the same time.
        spread: longest time between the two jobs of a round, in seconds.
        fields: fields of each spec.
    """
    chance = random.Random(15)
    pairs = [(f"a{number}", f"b{number}") for number in range(rounds)]
    policy = {"maxRestarts": 0, "backoff": {"initialSeconds": 0}}

    async def arrive(name: str, number: int) -> None:
        await asyncio.sleep(spread * chance.random())
        workers = {"resources": ONE_CPU, "template": {"spec": {"nodeSelector": {"round": str(number)}}}}
        manifest = make_manifest(name, replicas=WORKERS, workers=workers, restartPolicy=policy, **fields)
        await namespace.create_job(manifest)

    machines = [(f"round-{number}", WORKERS, {"round": str(number)}) for number in range(rounds)]
    async with nodes(namespace.api, *machines), bound_pods_run(namespace, WORKERS) as pods:
        await asyncio.gather(*(arrive(name, number) for number, pair in enumerate(pairs) for name in pair))
        for name in (name for pair in pairs for name in pair):
            status = await namespace.has_phase("Succeeded", name, seconds=150)
            assert (status["restarts"], status["disruptions"]) == (0, 0)
    return pods


def partial_groups(pods: BoundPods) -> list[str]:
    """Return the groups of which only a part got nodes."""
    return [group for group, names in pods.bound.items() if len(names) < WORKERS]


def first_attempts(rounds: int) -> set[str]:
    """Return the groups of the first attempts of all jobs."""
    return {f"{job}{number}-1" for job in "ab" for number in range(rounds)}
