"""Whatever the real API server accepts, the operator understands or answers with a condition."""

import asyncio
import random
from collections import Counter

import pytest

from tests.builders import NOW, TRAINER_IMAGE
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from tests.support.kube import ApiRefusal, Namespace
from tests.support.random_specs import RandomSpecs
from tests.support.specs import FULL_SPECS
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.acceptance import accept
from trainyard_operator.controller.unreadable import read_job
from trainyard_operator.lifecycle.actions import AcceptSpec
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.plan import plan

SEED = 20300101
AT_ONCE = 24


async def answer(namespace: Namespace, source: RandomSpecs, dice: random.Random, number: int) -> str:
    """Send one random spec as a dry run, and let the operator decide about what the API server makes of it."""
    spec = source.change(dice.choice([*FULL_SPECS.values(), {"image": "x", "command": ["a"]}]))
    manifest = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"job-{number}", "namespace": namespace.name},
        "spec": spec,
    }
    try:
        body = await namespace.api.post(namespace.jobs(), manifest, dryRun="All")
    except ApiRefusal as refused:
        # A rule that cannot be evaluated is no answer: another message must say what is wrong.
        answers = [part for part in refused.message.split(", spec") if "evaluating rule" not in part]
        if refused.code not in (400, 422) or not answers:
            raise
        return "refused by the API server"
    body["metadata"].setdefault("resourceVersion", "1")
    job = read_job(body)
    assert isinstance(job, TrainingJob), f"{spec}: {job}"
    step = plan(Observation(job, (), NOW))
    if any(isinstance(action, AcceptSpec) for action in step.actions):
        acceptance = await accept(FakeClusterBackend(FakeCluster(of=job)), job, AcceptSpec(dry_run=True), TRAINER_IMAGE)
        step = plan(Observation(job, (), NOW, acceptance=acceptance))
    outcomes = {c.type: c.reason for c in step.status.conditions if c.status == "True"}
    assert outcomes.keys() & {"Created", "Failed", "Suspended"}, f"{spec}: {step.status}"
    return outcomes.get("Failed", "accepted")


async def check(namespace: Namespace, count: int, seed: int) -> Counter[str]:
    source, dice = RandomSpecs(seed), random.Random(seed)
    outcomes: Counter[str] = Counter()
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(count, start + AT_ONCE))
        outcomes.update(await asyncio.gather(*(answer(namespace, source, dice, number) for number in numbers)))
    return outcomes


async def test_the_operator_understands_what_the_api_server_accepts(own_namespace: Namespace) -> None:
    outcomes = await check(own_namespace, 480, SEED)
    assert outcomes["accepted"] > 48, outcomes
    assert outcomes["refused by the API server"] > 48, outcomes


@pytest.mark.extended
async def test_the_operator_understands_10000_random_specs(own_namespace: Namespace) -> None:
    outcomes = await check(own_namespace, 10_000, SEED + 1)
    assert outcomes["accepted"] > 1000, outcomes
