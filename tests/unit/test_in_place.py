"""Restarts in place: when, in which order, and what happens where they are impossible."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import NOW, make_job, make_pod, served, termination_message, trainer_spec
from tests.support import kubelet
from tests.support.fake_cluster import FakeCluster
from tests.support.simulation import Simulation
from trainyard.protocol import constants, launcher, launcher_protocol
from trainyard.protocol.launcher_state import READY_PATH, ExitInfo, PodState
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.lifecycle.observation import WorkerState, apply_launcher_state, observe_pod
from trainyard_operator.manifests.children import build_config_map, build_secret, secret_name
from trainyard_operator.manifests.pod import build_pod

WORDS = termination_message(rank=1, exception="SIGKILL", message="rank 1 was killed by SIGKILL", step=7)


@pytest.fixture
def make() -> Iterator[Any]:
    lives: list[Simulation] = []

    def begin(**spec: Any) -> Simulation:
        spec = {"trainer": trainer_spec(), **spec}
        lives.append(Simulation(**spec))
        lives[-1].run_smoothly(20)
        assert status(lives[-1]).is_true(C.RUNNING)
        return lives[-1]

    yield begin
    for life in lives:
        life.close()


def status(life: Simulation) -> TrainingJobStatus:
    assert life.cluster.job is not None
    return life.cluster.job.status


def uids(cluster: FakeCluster) -> set[str]:
    return {pod["metadata"]["uid"] for pod in cluster.pods.values()}


def advance(life: Simulation, seconds: float = 5) -> None:
    """Time passes, and nothing else goes wrong."""
    for _ in range(int(seconds)):
        life.run_smoothly(4)
        life.cluster.pass_time(1)
    life.run_smoothly(10)


@pytest.mark.parametrize("program", [{}, served()], ids=["trainer", "with a server"])
def test_a_group_whose_processes_fail_is_restarted_inside_its_pods(make: Any, program: dict[str, Any]) -> None:
    life = make(**program)
    before = uids(life.cluster)
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    advance(life)
    found = status(life)
    assert uids(life.cluster) == before
    assert (found.attempt, found.pod_attempt_override, found.restarts, found.restarts_counted) == (2, 1, 1, 1)
    assert found.is_true(C.RUNNING)
    assert not found.is_true(C.RESTARTING)
    assert found.last_failure is not None
    assert (found.last_failure.rank, found.last_failure.step, found.last_failure.attempt) == (1, 7, 1)
    assert {life.cluster.running_attempt(name) for name in life.cluster.pods} == {2}
    assert any(e.message.endswith("attempt 2 in its pods (restart 1 of 3)") for e in life.cluster.events)


def test_restarts_in_place_repeat_until_the_limit(make: Any) -> None:
    life = make()
    for _ in range(3):
        life.cluster.fail_inside("job-1-0", 1, WORDS)
        advance(life, 10)
    found = status(life)
    assert (found.attempt, found.pod_attempt_override, found.restarts_counted) == (4, 1, 3)
    life.cluster.fail_inside("job-1-0", 3, WORDS)
    advance(life)
    found = status(life)
    assert found.is_true(C.FAILED)
    pods = {name: observe_pod(pod) for name, pod in life.cluster.pods.items()}
    assert pods["job-1-0"].exit_code == 3, "it has ended as its processes have, and its log can be read"
    assert "job-1-1" not in pods, "it held resources"


def test_an_unresponsive_launcher_leads_to_new_pods(make: Any) -> None:
    life = make()
    before = uids(life.cluster)
    life.cluster.unresponsive = {"job-1-0"}
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    advance(life)
    found = status(life)
    assert not before & uids(life.cluster)
    assert (found.attempt, found.pod_attempt_override, found.restarts) == (2, None, 1)
    assert set(life.cluster.pods) == {"job-2-0", "job-2-1"}


def test_a_pod_lost_meanwhile_leads_to_new_pods_and_does_not_count(make: Any) -> None:
    life = make()
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    life.deliver(jobs=9, pods=9)
    life.reconcile()
    assert status(life).pod_attempt_override == 1
    life.cluster.remove_pod("job-1-0")
    advance(life)
    found = status(life)
    assert set(life.cluster.pods) == {"job-2-0", "job-2-1"}
    assert (found.attempt, found.restarts, found.restarts_counted) == (2, 1, 1)


@pytest.mark.parametrize(
    ("spec", "loss"),
    [
        ({"restartPolicy": {"inPlace": False}}, "fail_inside"),
        ({"restartPolicy": {"backoff": {"initialSeconds": 45}}}, "fail_inside"),
        ({}, "fail_pod"),
    ],
    ids=["not wanted", "a wait longer than pods wait", "the pod has ended"],
)
def test_a_group_gets_new_pods_where_a_restart_in_place_is_impossible(
    make: Any, spec: dict[str, Any], loss: str
) -> None:
    life = make(**spec)
    before = uids(life.cluster)
    if "inPlace" in str(spec):
        assert not life.cluster.launchers, "no pod accepts restart requests"
        loss = "fail_pod"
    getattr(life.cluster, loss)("job-1-1", 137, WORDS)
    advance(life, 60)
    assert not before & uids(life.cluster)
    assert (status(life).attempt, status(life).pod_attempt_override) == (2, None)


def test_a_new_operator_queries_which_attempt_the_pods_run(make: Any) -> None:
    life = make()
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    advance(life)
    life.start_operator()
    advance(life)
    assert (status(life).attempt, status(life).restarts) == (2, 1)
    life.cluster.fail_inside("job-1-0", 137, WORDS)
    advance(life)
    assert (status(life).attempt, status(life).pod_attempt_override) == (3, 1)
    failure = status(life).last_failure
    assert failure is not None
    assert failure.attempt == 2


def test_an_operator_killed_between_two_restart_requests_sends_the_others(make: Any) -> None:
    life = make()
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    life.deliver(jobs=9, pods=9)
    life.reconcile()
    life.cluster.pass_time(2)
    life.cluster.writes_until_crash = 2  # the status of the next reconciliation, then after the first restart request
    advance(life)
    assert (status(life).attempt, status(life).pod_attempt_override) == (2, 1)
    assert {life.cluster.running_attempt(name) for name in life.cluster.pods} == {2}


def test_suspension_ends_pods_that_run_a_later_attempt(make: Any) -> None:
    life = make()
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    advance(life)
    life.cluster.edit(suspend=True)
    advance(life)
    assert life.cluster.pods == {}
    life.cluster.edit(suspend=False)
    advance(life)
    assert (status(life).attempt, status(life).pod_attempt_override) == (3, None)
    assert set(life.cluster.pods) == {"job-3-0", "job-3-1"}


def test_a_pending_restart_in_place_is_reported(make: Any) -> None:
    life = make(restartPolicy={"backoff": {"initialSeconds": 20}})
    life.cluster.fail_inside("job-1-1", 137, WORDS)
    advance(life, 3)
    found = status(life).condition(C.RUNNING)
    assert found is not None
    assert (found.status, found.reason) == ("False", Reason.BACKING_OFF)
    advance(life, 20)
    assert status(life).is_true(C.RUNNING)
    assert status(life).pod_attempt_override == 1


# --- what pods and launchers say ------------------------------------------------------------------------------


def test_a_launcher_gets_its_token_from_a_secret_that_only_its_pod_reads() -> None:
    job = make_job(trainer=trainer_spec())
    secret = build_secret(job, "abc")
    assert secret is not None
    pod = build_pod(job, 1, 0, trainer_image="trainer", secret=secret["metadata"]["name"])
    worker = pod["spec"]["containers"][0]
    (entry,) = [e for e in worker["env"] if e["name"] == launcher_protocol.ENV_TOKEN]
    assert entry["valueFrom"]["secretKeyRef"] == {"name": secret_name(job, "abc"), "key": constants.TOKEN_KEY}
    assert secret["stringData"] == {constants.TOKEN_KEY: "abc"}
    assert "abc" not in str(pod)
    assert worker["readinessProbe"]["httpGet"] == {"path": READY_PATH, "port": "launcher"}
    assert secret_name(job, "abd") != secret_name(job, "abc")


def test_a_users_program_has_a_launcher_only_on_request() -> None:
    job = make_job()
    assert build_secret(job, "abc") is None
    assert build_config_map(job) is None
    assert not observe_pod(make_pod(job)).has_launcher


def test_a_users_program_is_started_by_a_launcher_that_the_operator_brings() -> None:
    job = make_job(args=["--steps", "10"], restartPolicy={"inPlace": True})
    config = build_config_map(job)
    assert config is not None
    folder = Path(launcher.__file__).parent
    modules = ("launcher", "launcher_dns", "launcher_output", "launcher_port", "launcher_protocol", "log_tail")
    files = [f"{module}.py" for module in modules]
    assert config["data"] == {name: (folder / name).read_text() for name in files}
    pod = build_pod(job, 1, 0, trainer_image="", secret="s")
    worker = pod["spec"]["containers"][0]
    assert worker["command"] == ["python3", "/etc/trainyard/launcher.py", "train"]
    assert worker["args"] == ["--steps", "10"]
    assert {"name": "trainyard-config", "configMap": {"name": "job"}} in pod["spec"]["volumes"]
    assert {"name": "trainyard-config", "mountPath": "/etc/trainyard", "readOnly": True} in worker["volumeMounts"]


def test_the_launcher_needs_only_the_standard_library_of_an_older_python() -> None:
    imported: set[str] = set()
    for name in constants.LAUNCHER_FILES:
        tree = ast.parse((Path(launcher.__file__).parent / name).read_text(), feature_version=(3, 8))
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {name.removesuffix(".py") for name in constants.LAUNCHER_FILES}
    of_its_own = {"trainyard.protocol", *own, *(f"trainyard.protocol.{name}" for name in own)}
    assert {name.partition(".")[0] for name in imported - of_its_own} <= sys.stdlib_module_names


def test_the_state_of_a_launcher_counts_only_while_its_pod_is_not_ready() -> None:
    job = make_job(trainer=trainer_spec())
    pod = make_pod(job, 1, status=kubelet.running(NOW, ready=False))
    end = ExitInfo(exit_code=137, message=WORDS, at=NOW)
    worker = apply_launcher_state(observe_pod(pod), PodState(attempt=3, exit_info=end), unresponsive=False)
    assert (worker.state, worker.awaiting_restart, worker.running_attempt, worker.exit_code) == (
        WorkerState.FAILED,
        True,
        3,
        137,
    )
    assert worker.active
    ready = observe_pod({**pod, "status": kubelet.running(NOW)})
    restarted = apply_launcher_state(ready, PodState(attempt=3, exit_info=end), unresponsive=False)
    assert (restarted.state, restarted.awaiting_restart, restarted.running_attempt) == (WorkerState.RUNNING, False, 3)
