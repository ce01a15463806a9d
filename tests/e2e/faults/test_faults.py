"""Faults on a real node, one after the other: the job goes on, and nobody could tell by its losses or its samples."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.course import Course, follow, repeated, skipped
from tests.e2e.faults.report import Row, recorded_seconds, render
from tests.e2e.faults.scene import AT, EVERY, STEP_SECONDS, STEPS, Scene, hook, make_job
from tests.e2e.faults.table import TABLE, Fault
from tests.e2e.node import Hands
from tests.e2e.world import Body, OperatorPod, World, print_evidence

pytestmark = pytest.mark.e2e

TOLERANCE = 1e-5
PAGE = Path("build/resilience.md")
RECORDED = Path("docs/resilience.md")
SLACK = 5
"""How many times the recorded seconds a recovery may take."""
STALL = 3.0
"""Seconds that a busy machine may stand still; so much is allowed where recovery takes less than a second."""


def cases() -> Iterator[Any]:
    """Yield the rows of the table; those that another test represents are extended."""
    for fault in TABLE:
        marks = [pytest.mark.extended] if fault.represented_by else []
        yield pytest.param(fault, id=fault.name, marks=marks)


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """What was measured; in the end it is written down."""
    found: list[Row] = []
    yield found
    page = render(found, cpus=os.cpu_count() or 1, steps=STEPS, pace=STEP_SECONDS, every=EVERY)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, "utf-8")


@pytest.fixture(scope="module")
def yard(open_world: World) -> World:
    """The namespace of all these jobs, which may mount folders of the node."""
    open_world.apply(hook())
    return open_world


@contextmanager
def training(world: World, hands: Hands, operator: OperatorPod, fault: Fault) -> Iterator[Scene]:
    """A job under way, and gone in the end."""
    volume = hands.volume(world, fault.name)
    checkpoint: Body = {"volume": {"hostPath": {"path": str(volume.path)}}}
    if fault.volume == "tmpfs":
        volume.limit("32m")
    if fault.volume == "claim":
        volume.offer(world, fault.name)
        checkpoint = {"claim": {"size": "1Gi"}}
    with follow(hands.pod_logs, world.namespace, fault.name) as course:
        world.apply(make_job(fault.name, checkpoint, pace=fault.pace, **fault.spec))
        try:
            yield Scene(world, hands, fault.name, volume, operator, course)
        except BaseException:
            print_evidence(world, operator)
            raise
        finally:
            world.kubectl("delete", "tj", fault.name, "--wait=false")
            volume.withdraw(world, wait=False)
            volume.remove()


@pytest.fixture(scope="module")
def undisturbed(yard: World, hands: Hands, operator_pod: OperatorPod) -> Course:
    """The same run without a fault."""
    with training(yard, hands, operator_pod, Fault("undisturbed", "nothing", lambda _: None)) as scene:
        status = scene.await_end()
    assert status["attempt"] == 1
    assert sorted(scene.course.losses()) == list(range(1, STEPS + 1))
    assert repeated(scene.course.samples()) == 0, "one epoch: each sample comes once"
    return scene.course


@pytest.mark.parametrize("fault", list(cases()))
def test_training_goes_on_as_if_nothing_had_happened(
    fault: Fault,
    yard: World,
    hands: Hands,
    operator_pod: OperatorPod,
    undisturbed: Course,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with training(yard, hands, operator_pod, fault) as scene:
        scene.await_step(AT)
        at, step = time.time(), scene.course.step
        fault.inject(scene)
        status = scene.await_end()
        samples = scene.samples_in_manifests()
        events = scene.world.events(fault.name)
    course = scene.course
    row = _measure(fault, course, undisturbed, status, at, course.reached(1) if fault.reason else step)
    rows.append(row)
    with capsys.disabled():
        print(f"\n{row}", status.get("lastFailure", {}).get("message", ""), sep="\n")
    _check_status(fault, status, events, course)
    assert row.lost <= fault.loses
    assert row.seconds <= max(SLACK * recorded_seconds(RECORDED.read_text("utf-8"))[fault.what], STALL)
    assert (row.repeated, row.skipped) == (0, 0)
    assert course.samples() == undisturbed.samples()
    assert samples == {number: number * 8 for number in samples}, "a checkpoint knows how many samples it has seen"
    assert course.losses() == pytest.approx(undisturbed.losses(), rel=TOLERANCE)


def _measure(fault: Fault, course: Course, undisturbed: Course, status: Body, at: float, reached: int) -> Row:
    samples, expected = course.samples(), undisturbed.samples()
    loss, reference = course.losses()[STEPS], undisturbed.losses()[STEPS]
    failure: dict[str, Any] = status.get("lastFailure", {})
    return Row(
        what=fault.what,
        seconds=course.longest_pause(at, reached),
        lost=reached - course.resumed[2] if 2 in course.resumed else 0,
        repeated=repeated(samples),
        skipped=skipped(samples, expected),
        loss_difference=abs(loss - reference) / reference,
        reason=failure.get("reason"),
        counted=status["restartsCounted"] > 0,
    )


def _check_status(fault: Fault, status: Body, events: list[tuple[str, str]], course: Course) -> None:
    """The job says what has happened, each thing once."""
    restarts = int(fault.reason is not None)
    assert (status["restarts"], status["restartsCounted"]) == (restarts, restarts * fault.counts)
    assert (status["progress"]["step"], status["progress"]["checkpointStep"]) == (STEPS, STEPS)
    told = [reason for reason, _ in events]
    if restarts:
        failure = status["lastFailure"]
        assert failure["attempt"] == 1
        assert failure["reason"] in (fault.reason, fault.effect)
        assert ("CheckpointLoaded", f"attempt 2: continuing after step {course.resumed[2]}") in events
    assert told.count("CheckpointLoaded") == restarts
    for reason in ("CheckpointDamaged", "CheckpointFailed"):
        assert (reason in told) == (reason == fault.event), told
