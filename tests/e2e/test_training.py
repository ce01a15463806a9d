"""A complete job on a real node: chart, image, pods, DNS, rendezvous, training, metrics, recovery."""

import json
import time
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.namespace import KILL_A_RANK, Body, Namespace, OperatorPod, eventually, trainer_job
from tests.e2e.prometheus import Prometheus
from tests.support.samples import sample

pytestmark = pytest.mark.e2e

SAMPLE_STEPS = 60
"""Of the sample, instead of its own 200: the loss has fallen far by then."""


def _first_step(namespace: Namespace, pod: str, attempt: int = 1) -> float:
    """Return when rank 0 finished the first step of an attempt, from its log."""
    for line in namespace.kubectl("logs", pod).splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        if (entry.get("step"), entry.get("attempt")) == (1, attempt):
            return datetime.fromisoformat(entry["time"]).timestamp()
    raise AssertionError(f"{pod} has logged no first step")


def _running(body: Body) -> bool:
    conditions = body.get("status", {}).get("conditions", ())
    return any(c["type"] == "Running" and c["status"] == "True" for c in conditions)


def _print_timeline(title: str, start: float, marks: dict[str, float | None]) -> None:
    shown = ", ".join(f"{name} {at - start:.1f} s" for name, at in marks.items() if at is not None)
    print(f"\n{title}: {shown}")


def test_the_sample_trains_to_its_end_while_prometheus_watches(
    namespace: Namespace, prometheus: Prometheus, capsys: pytest.CaptureFixture[str]
) -> None:
    body = sample("llama-ddp", steps=SAMPLE_STEPS)
    name = body["metadata"]["name"]
    with namespace.record("tj") as jobs, namespace.record("pods") as pods:
        start = time.time()
        namespace.apply(body)
        namespace.await_step(name, 20)
        _check_prometheus(prometheus, name, namespace.name)
        columns = namespace.kubectl("get", "tj", name)
        status = namespace.await_phase(name, "Succeeded", timeout=300)
    first_step = _first_step(namespace, f"{name}-1-0")
    marks = {
        "pods created": pods.when(lambda p: p["metadata"]["name"] == f"{name}-1-1"),
        "all Running": jobs.when(_running),
        "first step": first_step,
        "Succeeded": jobs.when(lambda j: j.get("status", {}).get("phase") == "Succeeded"),
    }
    with capsys.disabled():
        _print_timeline("apply ->", start, marks)
        print(columns)
    header, row = columns.splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "LOSS", "TOKENS/S", "WORKERS", "RESTARTS", "AGE"]
    assert row.split()[:2] == [name, "Running"]
    assert int(row.split()[2]) >= 20
    progress = status["progress"]
    assert (progress["step"], progress["totalSteps"]) == (SAMPLE_STEPS, SAMPLE_STEPS)
    assert 0.5 < progress["loss"] < 3.2, "these steps bring a byte model well below its first loss of 5.5"
    assert status["restarts"] == 0
    logged = namespace.kubectl("logs", f"{name}-1-0").splitlines()
    last = [json.loads(line) for line in logged if f'"step": {SAMPLE_STEPS},' in line]
    assert progress["loss"] == pytest.approx(last[0]["loss"], rel=1e-4), "status and log agree on the final loss"
    assert [r for r, _ in namespace.events(name)] == ["Accepted", "AllWorkersRunning", "AllWorkersSucceeded"]
    namespace.kubectl("delete", "tj", name)
    gone = eventually(
        "children gone with the job",
        lambda: not namespace.objects("pods,services,configmaps", f"trainyard.dev/job-name={name}"),
    )
    assert gone


def _check_prometheus(prometheus: Prometheus, job: str, namespace: str) -> None:
    """Check that both workers are scraped, rank 0 exports step, loss and throughput, and the operator the condition."""
    labels = f'job_name="{job}", namespace="{namespace}"'

    def value(metric: str) -> float | None:
        found = prometheus.query(f"{metric}{{{labels}}}")
        return found[0][1] if found else None

    assert eventually("a step in Prometheus", lambda: value("trainyard_steps_total"), timeout=30) >= 1
    loss = eventually("a loss in Prometheus", lambda: value("trainyard_loss"), timeout=30)
    assert 0 < loss < 6
    assert eventually("tokens/s", lambda: value("trainyard_tokens_per_second"), timeout=30) > 100
    pods = {labels["pod"] for labels, up in prometheus.query(f'up{{pod=~"{job}-1-.*"}}') if up == 1}
    assert pods == {f"{job}-1-0", f"{job}-1-1"}
    running = f'trainyard_job_condition{{{labels}, condition="Running"}} == 1'
    assert eventually("the operator's view in Prometheus", lambda: prometheus.query(running), timeout=30)


RESTART_IN_PLACE = 2.0
"""Seconds from SIGKILL of a rank to the next step, as README says."""


# Extended: tests/e2e/faults/test_faults.py [shim] proves that a restart makes new pods, and the state machine of
# tests/unit/test_state_machine.py that none of them exists before the last of the old ones is gone.
@pytest.mark.parametrize(
    "in_place", [True, pytest.param(False, marks=pytest.mark.extended)], ids=["in place", "with new pods"]
)
def test_a_killed_rank_restarts_the_whole_group(
    namespace: Namespace, capsys: pytest.CaptureFixture[str], in_place: bool
) -> None:
    name = "killed" if in_place else "renewed"
    namespace.apply(trainer_job(name, steps=150, restartPolicy={"inPlace": in_place}))
    namespace.await_step(name, 10)
    before = {p["metadata"]["uid"] for p in namespace.objects("pods", f"trainyard.dev/job-name={name}")}
    with namespace.record("tj") as jobs, namespace.record("pods") as pods:
        killed = time.time()
        assert namespace.kubectl("exec", f"{name}-1-1", "--", "python", "-c", KILL_A_RANK).strip()
        status = namespace.await_phase(name, "Succeeded", timeout=400)
    group = 1 if in_place else 2
    again = _first_step(namespace, f"{name}-{group}-0", attempt=2)
    marks = {
        "failure seen": jobs.when(lambda j: j["status"]["attempt"] == 2),
        "new pods": pods.when(lambda p: p["metadata"]["name"] == f"{name}-2-0"),
        "all Running": jobs.when(lambda j: j["status"]["attempt"] == 2 and _running(j)),
        "training again": again,
    }
    with capsys.disabled():
        _print_timeline(f"kill of a rank, {'in place' if in_place else 'new pods'} ->", killed, marks)
    failure = status["lastFailure"]
    assert (failure["pod"], failure["rank"], failure["exitCode"], failure["reason"]) == (
        f"{name}-1-1",
        1,
        137,
        "SIGKILL",
    )
    assert failure["node"]
    assert (status["attempt"], status["restarts"], status["restartsCounted"]) == (2, 1, 1)
    assert status["progress"]["step"] == 150
    mine = [s for s in pods.seen if s.body["metadata"]["name"].startswith(f"{name}-")]
    new = [s for s in mine if s.body["metadata"]["uid"] not in before]
    if in_place:
        assert status["podAttemptOverride"] == 1
        assert new == [], "no pod was made"
        assert again - killed < 5 * RESTART_IN_PLACE
        return
    old_end = max(s.at for s in mine if s.body["metadata"]["uid"] in before)
    assert old_end <= min(s.at for s in new), "no pod of the new attempt before the last of the old one was gone"


def test_a_deleted_pod_restarts_the_group_without_spending_the_budget(namespace: Namespace) -> None:
    namespace.apply(trainer_job("evicted", steps=150, restartPolicy={"maxRestarts": 0}))
    namespace.await_step("evicted", 10)
    namespace.kubectl("delete", "pod", "evicted-1-0", "--wait=false")
    status = namespace.await_phase("evicted", "Succeeded", timeout=180)
    assert (status["restarts"], status["restartsCounted"]) == (1, 0)
    assert status["lastFailure"]["reason"] == "Deleted"


# Extended: tests/e2e/faults/test_faults.py [drained] evicts the operator together with the job, and
# tests/integration/test_crash.py kills it at any moment of a job's life.
@pytest.mark.extended
def test_a_restarted_operator_carries_on_where_it_was(namespace: Namespace, operator_pod: OperatorPod) -> None:
    namespace.apply(trainer_job("orphan", steps=200))
    namespace.await_step("orphan", 5)
    operator_pod.kill()
    status = namespace.await_phase("orphan", "Succeeded", timeout=180)
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert status["progress"]["step"] == 200


def test_an_upgrade_of_the_operator_hands_the_work_over_to_the_new_pod(
    namespace: Namespace, operator_pod: OperatorPod
) -> None:
    system, before = operator_pod.namespace, operator_pod.names()
    namespace.apply(trainer_job("upgraded", steps=150))
    namespace.await_step("upgraded", 5)
    operator_pod.replace()

    def new_leader() -> str:
        holder: str = system.get("lease", "trainyard")["spec"]["holderIdentity"]
        return "" if holder in before else holder

    holder = eventually("a new holder of the lease", new_leader)
    status = namespace.await_phase("upgraded", "Succeeded", timeout=180)
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert operator_pod.names() == [holder]


def test_a_users_own_torchrun_program_finds_its_peers(namespace: Namespace, trainer_image: str) -> None:
    program = (
        "import os, torch, torch.distributed as dist; dist.init_process_group('gloo'); "
        "x = torch.ones(1) * (dist.get_rank() + 1); dist.all_reduce(x); "
        "os.write(1, b'sum %d of %d\\n' % (int(x), dist.get_world_size())); "
        "dist.barrier(); dist.destroy_process_group()"
    )
    body: dict[str, Any] = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "own"},
        "spec": {
            "image": trainer_image,
            "workers": {"replicas": 2, "procsPerWorker": 2, "template": {"spec": _restricted()}},
            "command": ["torchrun", "--no-python", "python", "-c", program],
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
        },
    }
    namespace.apply(body)
    namespace.await_phase("own", "Succeeded", timeout=120)
    logs = namespace.kubectl("logs", "own-1-0") + namespace.kubectl("logs", "own-1-1")
    assert logs.count("sum 10 of 4") == 4


def _restricted() -> Body:
    """Return the pod spec that the restricted security profile requires of a user's own pods."""
    container = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "worker", "securityContext": container}],
    }
