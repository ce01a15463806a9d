"""One job of each hostile kind beside honest jobs, on a real API server with a real operator.

Each kind is a row of a table (`pages.py`, `messages.py`, `objects.py`): what it is called, what it does, and what its
own status must say. The part for each change has the kinds marked `quick`; the extended test has all. To look at some
kinds alone:

    TRAINYARD_TEST_HOSTILE=page-silent,spec-micro pytest tests/integration/hostile -k quick
"""

import asyncio
import os
import re
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.builders import make_manifest
from tests.cluster import Cluster
from tests.integration.conftest import chart_environment
from tests.integration.hostile.gauges import (
    PROBE_FAILURES,
    Etcd,
    Liveness,
    peak_memory,
    probing,
    processor_seconds,
)
from tests.integration.hostile.honest import STEPS, Honest
from tests.integration.hostile.kind import Hostile, described, matches
from tests.integration.hostile.scene import KINDS, Scene, set_scene
from tests.support.kube import ApiRefusal, Namespace, Object, connect
from tests.support.operator import OperatorProcess

ONLY = [name for name in os.environ.get("TRAINYARD_TEST_HOSTILE", "").split(",") if name]

SLOWDOWN = 2.0
"""Honest jobs may take this many times as long to start beside hostile jobs as beside as many harmless ones, which are
created at the same pace: a small machine's API server is slow beside any others."""
NOISE_SECONDS = 0.5
"""What a start may take longer for other reasons, such as the test's own servers."""
STALL_SECONDS = 5.0
"""What one of the starts may take longer because the machine was busy with something else for a moment."""
MEMORY_LIMIT = 512 * 1024 * 1024
"""Bytes of memory at which the kernel kills the operator: the chart's limit."""
LOG_LIMIT = 20_000
"""Bytes of the operator's log for each job."""
CREATION_SECONDS = 0.1
"""Time between the creations of two hostile jobs: all at once would measure how fast this machine stores objects."""


@dataclass(frozen=True)
class Part:
    """How long a part of the table is watched, and what it may write."""

    kinds: tuple[Hostile, ...]
    rounds: int
    """Honest jobs are started this many times beside the hostile ones."""
    tell_seconds: int
    """Time in which each hostile job has to say what is wrong with it."""
    steady_seconds: float
    """Time for which the jobs are left alone and etcd is measured."""


QUICK = Part(tuple(kind for kind in KINDS if kind.quick), rounds=3, tell_seconds=35, steady_seconds=5)
ALL = Part(KINDS, rounds=6, tell_seconds=60, steady_seconds=40)

STEADY_BYTES_PER_SECOND = 400
"""Bytes that etcd may write for each job once nothing new happens to it: a status of 6 kB every 15 s. About
290 were measured. One job whose page is stored as it is (900 kB, every second) exceeds this for all."""
TOTAL_BYTES = 200_000
"""Bytes that etcd may write for each job in the whole test, with all that the test itself writes: pods and their
statuses, annotations of 200 kB, specs of 300 kB."""


@dataclass
class Seen:
    """What was measured."""

    quiet: list[float] = field(default_factory=list)
    """Seconds until honest jobs ran, beside as many harmless jobs as there are hostile ones later."""
    beside: list[float] = field(default_factory=list)
    """The same beside hostile ones."""
    cpu: float = 0.0
    """Seconds of processor time that the operator has used."""
    elsewhere: int = 0
    """Calls of an address that belongs to no pod."""
    total: float = 0.0
    steady: float = 0.0
    """Bytes that etcd wrote per second when nothing new happened."""
    memory: int = 0
    part_failures: list[str] = field(default_factory=list)
    """Series of the operator's metrics that count parts of it which were restarted."""
    unsaid: list[str] = field(default_factory=list)
    """Hostile jobs whose status does not say what is wrong."""
    finished: list[Object] = field(default_factory=list)
    """Statuses of the honest jobs at their end."""


def test_the_table_has_each_kind_once_and_at_least_thirty() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 30
    assert set(ONLY) <= set(names)
    assert 10 <= len(QUICK.kinds) < len(KINDS)


@pytest.mark.timeout(300)
async def test_quick_hostile_jobs_hurt_neither_the_operator_nor_honest_jobs(
    own_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _prove(QUICK, own_cluster, tmp_path, capsys)


@pytest.mark.extended
@pytest.mark.timeout(600)
async def test_all_hostile_jobs_hurt_neither_the_operator_nor_honest_jobs(
    own_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _prove(ALL, own_cluster, tmp_path, capsys)


async def _prove(part: Part, cluster: Cluster, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if ONLY:
        part = replace(part, kinds=tuple(kind for kind in KINDS if kind.name in ONLY))
    environment = {**chart_environment(cluster, folder), "TRAINYARD_PROGRESS_INTERVAL": "1"}
    async with connect(cluster.kubeconfig) as api, set_scene(part.kinds, cluster, api) as scene:
        operator = OperatorProcess(environment, folder / "log")
        try:
            await operator.ready()
            async with probing(operator) as liveness:
                seen = await _while_alive(operator, _play(part, scene, operator, Etcd(cluster)))
            with capsys.disabled():
                print(f"\n{_summary(part, seen, liveness, operator)}")
            problems = _problems(part, seen, liveness, operator)
            assert problems == [], "\n".join(["", *problems])
        finally:
            operator.kill()


# --- the run --------------------------------------------------------------------------------------------------


async def _while_alive(operator: OperatorProcess, play: Coroutine[Any, Any, Seen]) -> Seen:
    """Return what was seen, or fail as soon as the operator has ended: nothing restarts it here."""
    task = asyncio.create_task(play)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=0.5)
            code = operator.process.poll()
            assert code is None, f"the operator has ended with code {code}: {operator.log.read_text()[-3000:]}"
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _play(part: Part, scene: Scene, operator: OperatorProcess, etcd: Etcd) -> Seen:
    """Start honest jobs without and then beside hostile ones, and let the honest ones succeed."""
    seen, honest = Seen(), scene.honest
    await honest.start()  # a connection, an import, a cache: only the first job pays for these
    crowd, names = await asyncio.gather(
        honest.crowd(len(part.kinds), CREATION_SECONDS), _rounds(part, honest, seen.quiet)
    )
    await honest.remove(crowd)
    before = await etcd.bytes_written()
    refusals, rounds = await asyncio.gather(_create(part, scene), _rounds(part, honest, seen.beside))
    seen.unsaid = await _unsaid(part, scene, refusals)
    first = await etcd.bytes_written()
    await asyncio.sleep(part.steady_seconds)
    seen.steady = (await etcd.bytes_written() - first) / part.steady_seconds
    # Progress of honest jobs is read although hostile ones do not answer.
    seconds, latest = await honest.start()
    seen.beside.append(seconds)
    with suppress(AssertionError):
        await honest.shows_step(STEPS // 2, *[name for name in latest if "plain" not in name], seconds=20)
    seen.unsaid += await _step_is_missing(honest, latest)
    seen.finished = await honest.finish([*names, *rounds, *latest])
    seen.total = await etcd.bytes_written() - before
    seen.elsewhere = scene.elsewhere.count
    seen.memory, seen.cpu = peak_memory(operator), processor_seconds(operator)
    _, metrics = await operator.page("/metrics")
    seen.part_failures = re.findall(r"^\w+_part_failures_total\{.*\} [^0].*$", metrics, re.MULTILINE)
    return seen


async def _step_is_missing(honest: Honest, names: Sequence[str]) -> list[str]:
    """Return a line for each honest job whose status does not show the step of its page."""
    missing = []
    for name in names:
        progress = (await honest.namespace.job(name))["status"].get("progress", {})
        if "plain" not in name and progress.get("step") != honest.step:
            missing.append(f"honest job {name}: its page shows step {honest.step}, its status {progress}")
    return missing


async def _rounds(part: Part, honest: Honest, seconds_of: list[float]) -> list[str]:
    """Start honest jobs again and again, from the moment at which others are created. Returns their names."""
    started = []
    for _ in range(part.rounds):
        seconds, names = await honest.start()
        seconds_of.append(seconds)
        started += names
        await asyncio.sleep(1)
    return started


async def _create(part: Part, scene: Scene) -> dict[str, str]:
    """Create the hostile jobs, and let their tenants act. Returns the API server's refusals by name of the job."""
    refusals: dict[str, str] = {}

    async def create(turn: int, kind: Hostile) -> None:
        await asyncio.sleep(turn * CREATION_SECONDS)
        namespace = scene.namespace_of(kind)
        if not kind.stored:
            try:
                await namespace.create_job(make_manifest(kind.name, **{"replicas": 1, **kind.spec}))
            except ApiRefusal as error:
                refusals[kind.name] = str(error)
                return
        if kind.act is not None:
            await kind.act(namespace, kind.name)

    creations = (create(turn, kind) for turn, kind in enumerate(part.kinds))
    results = await asyncio.gather(*creations, return_exceptions=True)
    for kind, result in zip(part.kinds, results, strict=True):
        if isinstance(result, BaseException):
            refusals[kind.name] = f"(the tenant could not act: {result})"
    return refusals


async def _unsaid(part: Part, scene: Scene, refusals: dict[str, str]) -> list[str]:
    """Wait until each hostile job says what is wrong with it. Returns those that do not, with what they say."""
    left: list[str] = []
    for _ in range(part.tell_seconds):
        stored: dict[str, Object] = {}
        for namespace in (scene.hostile, scene.limited):
            stored |= {job["metadata"]["name"]: job for job in (await namespace.api.get(namespace.jobs()))["items"]}
        said = {name: described(job.get("status", {})) for name, job in stored.items()} | refusals
        # The API server stores no status of an object that its CRD does not admit any more.
        for kind in part.kinds:
            if kind.stored:
                said[kind.name] += await _events(scene.hostile, kind.name)
        left = [
            f"{kind.name} does not say {kind.says!r}:\n{said[kind.name][:2000]}".replace("\n", "\n    ")
            for kind in part.kinds
            if not matches(kind, said[kind.name])
        ]
        if not left:
            break
        await asyncio.sleep(1)
    return left


async def _events(namespace: Namespace, name: str) -> str:
    """Return the messages of the events about a job, each in a line."""
    events = (await namespace.api.get(namespace.core("events")))["items"]
    return "".join(f"\nevent {e['reason']}: {e['message']}" for e in events if e["involvedObject"]["name"] == name)


# --- what must hold -------------------------------------------------------------------------------------------


def _summary(part: Part, seen: Seen, liveness: Liveness, operator: OperatorProcess) -> str:
    quiet, beside = (", ".join(f"{seconds:.2f}" for seconds in starts) for starts in (seen.quiet, seen.beside))
    log = operator.log.stat().st_size
    return (
        f"{len(part.kinds)} hostile jobs, {len(seen.finished)} honest ones; operator process {operator.process.pid}, "
        f"no restart, {seen.memory >> 20} MiB, {seen.cpu:.0f} s of CPU, slowest probe {liveness.slowest:.2f} s, "
        f"{log >> 10} KiB of log; honest starts {quiet} s beside harmless jobs, {beside} s beside hostile ones; "
        f"etcd {seen.total / 1e6:.1f} MB in all, {seen.steady / 1e3:.1f} kB/s at the end"
    )


def _problems(part: Part, seen: Seen, liveness: Liveness, operator: OperatorProcess) -> list[str]:
    """Return all promises that were not kept."""
    log = operator.log.read_text()
    bugs = [line["message"] for line in operator.lines if "exception" in line]
    broken = [line for line in log.splitlines() if not line.startswith("{")]
    took, allowed = median(seen.beside), SLOWDOWN * median(seen.quiet) + NOISE_SECONDS
    longest, bound = max(seen.beside), SLOWDOWN * max(seen.quiet) + STALL_SECONDS
    jobs = len(part.kinds) + len(seen.finished)
    checks = {
        f"the operator logged bugs: {bugs[:10]}": not bugs,
        f"parts of the operator were restarted: {seen.part_failures}": not seen.part_failures,
        f"something that a pod said has broken lines of the log: {broken[:3]}": not broken,
        f"the log has grown by {len(log)} bytes": len(log) < LOG_LIMIT * jobs,
        f"a kubelet would have restarted the operator: {liveness.answers}": liveness.worst < PROBE_FAILURES,
        f"the operator has used {seen.memory >> 20} MiB": 0 < seen.memory < MEMORY_LIMIT,
        f"the operator has called an address that belongs to no pod {seen.elsewhere} times": seen.elsewhere == 0,
        f"honest jobs took {took:.2f} s to start (median), allowed are {allowed:.2f} s": took <= allowed,
        f"an honest job took {longest:.2f} s to start, allowed are {bound:.2f} s": longest <= bound,
        f"etcd writes {seen.steady:.0f} bytes per second": seen.steady <= STEADY_BYTES_PER_SECOND * jobs,
        f"etcd has written {seen.total:.0f} bytes": seen.total <= TOTAL_BYTES * jobs,
    }
    problems = [problem for problem, kept in checks.items() if not kept]
    for status in seen.finished:
        if (status["restarts"], status["attempt"], status.get("progress", {}).get("step", STEPS)) != (0, 1, STEPS):
            problems.append(f"an honest job has ended otherwise than it should: {status}")
    return problems + seen.unsaid
