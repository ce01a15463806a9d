"""Faults on a real node, one after the other: the job resumes with the losses and samples of an undisturbed run."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.fault_job import AT, EVERY, STEP_SECONDS, STEPS, FaultJob, hook, make_job
from tests.e2e.faults.report import Row, recorded_seconds, render
from tests.e2e.faults.run_trace import RunTrace, follow, repeated, skipped
from tests.e2e.faults.table import TABLE, Fault
from tests.e2e.namespace import Body, Namespace, OperatorPod, print_evidence
from tests.e2e.node_faults import NodeFaults

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
    """Collect the measurements; at the end they are written to a page."""
    found: list[Row] = []
    yield found
    page = render(found, cpus=os.cpu_count() or 1, steps=STEPS, pace=STEP_SECONDS, every=EVERY)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, "utf-8")


@pytest.fixture(scope="module")
def yard(open_namespace: Namespace) -> Namespace:
    """Return the namespace of all these jobs, which may mount folders of the node."""
    open_namespace.apply(hook())
    return open_namespace


@contextmanager
def training(namespace: Namespace, node_faults: NodeFaults, operator: OperatorPod, fault: Fault) -> Iterator[FaultJob]:
    """Run a job, and delete it at the end of the context."""
    volume = node_faults.volume(namespace, fault.name)
    checkpoint: Body = {"volume": {"hostPath": {"path": str(volume.path)}}}
    if fault.volume == "tmpfs":
        volume.limit("32m")
    if fault.volume == "claim":
        volume.offer(namespace, fault.name)
        checkpoint = {"claim": {"size": "1Gi"}}
    with follow(node_faults.pod_logs, namespace.name, fault.name) as trace:
        namespace.apply(make_job(fault.name, checkpoint, pace=fault.pace, **fault.spec))
        try:
            yield FaultJob(namespace, node_faults, fault.name, volume, operator, trace)
        except BaseException:
            print_evidence(namespace, operator)
            raise
        finally:
            namespace.kubectl("delete", "tj", fault.name, "--wait=false")
            volume.withdraw(namespace, wait=False)
            volume.remove()


@pytest.fixture(scope="module")
def undisturbed(yard: Namespace, node_faults: NodeFaults, operator_pod: OperatorPod) -> RunTrace:
    """Return the trace of the same run without a fault."""
    with training(yard, node_faults, operator_pod, Fault("undisturbed", "nothing", lambda _: None)) as job:
        status = job.await_end()
    assert status["attempt"] == 1
    assert sorted(job.trace.losses()) == list(range(1, STEPS + 1))
    assert repeated(job.trace.samples()) == 0, "one epoch: each sample comes once"
    return job.trace


@pytest.mark.parametrize("fault", list(cases()))
def test_training_goes_on_as_if_nothing_had_happened(
    fault: Fault,
    yard: Namespace,
    node_faults: NodeFaults,
    operator_pod: OperatorPod,
    undisturbed: RunTrace,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with training(yard, node_faults, operator_pod, fault) as job:
        job.await_step(AT)
        at, step = time.time(), job.trace.step
        fault.inject(job)
        status = job.await_end()
        samples = job.samples_in_manifests()
        events = job.namespace.events(fault.name)
    trace = job.trace
    row = _measure(fault, trace, undisturbed, status, at, trace.reached(1) if fault.reason else step)
    rows.append(row)
    with capsys.disabled():
        print(f"\n{row}", status.get("lastFailure", {}).get("message", ""), sep="\n")
    _check_status(fault, status, events, trace)
    assert row.lost <= fault.loses
    assert row.seconds <= max(SLACK * recorded_seconds(RECORDED.read_text("utf-8"))[fault.what], STALL)
    assert (row.repeated, row.skipped) == (0, 0)
    assert trace.samples() == undisturbed.samples()
    assert samples == {number: number * 8 for number in samples}, "a checkpoint knows how many samples it has seen"
    assert trace.losses() == pytest.approx(undisturbed.losses(), rel=TOLERANCE)


def _measure(fault: Fault, trace: RunTrace, undisturbed: RunTrace, status: Body, at: float, reached: int) -> Row:
    samples, expected = trace.samples(), undisturbed.samples()
    loss, reference = trace.losses()[STEPS], undisturbed.losses()[STEPS]
    failure: dict[str, Any] = status.get("lastFailure", {})
    return Row(
        what=fault.what,
        seconds=trace.longest_pause(at, reached),
        lost=reached - trace.resumed[2] if 2 in trace.resumed else 0,
        repeated=repeated(samples),
        skipped=skipped(samples, expected),
        loss_difference=abs(loss - reference) / reference,
        reason=failure.get("reason"),
        counted=status["restartsCounted"] > 0,
    )


def _check_status(fault: Fault, status: Body, events: list[tuple[str, str]], trace: RunTrace) -> None:
    """Check that status and events report what has happened, each thing once."""
    restarts = int(fault.reason is not None)
    assert (status["restarts"], status["restartsCounted"]) == (restarts, restarts * fault.counts)
    assert (status["progress"]["step"], status["progress"]["checkpointStep"]) == (STEPS, STEPS)
    told = [reason for reason, _ in events]
    if restarts:
        failure = status["lastFailure"]
        assert failure["attempt"] == 1
        assert failure["reason"] in (fault.reason, fault.effect)
        assert ("CheckpointLoaded", f"attempt 2: continuing after step {trace.resumed[2]}") in events
    assert told.count("CheckpointLoaded") == restarts
    for reason in ("CheckpointDamaged", "CheckpointFailed"):
        assert (reason in told) == (reason == fault.event), told
