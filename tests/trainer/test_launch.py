"""The launcher: ranks of a pod, processors, threads, and what must not happen before it forks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, environment
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.launcher import pod_environment, rank_processes
from trainyard_trainer.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_cpu_quota_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(pod_environment, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert pod_environment._cgroup_quota() == quota
    assert pod_environment.usable_cpus() == (8 if quota is None else max(1, int(quota)))


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({}, 0),
        ({"memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0),
    ],
)
def test_processes_killed_by_the_oom_killer_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], kills: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(pod_environment, "CGROUP", tmp_path)
    assert pod_environment.oom_kill_count() == kills


@pytest.mark.parametrize(
    ("code", "oom_killed", "name", "message"),
    [
        (-9, True, "OOMKilled", "rank 3 was killed by the OOM killer (SIGKILL)"),
        (-9, False, "SIGKILL", "rank 3 was killed by SIGKILL; the usual reason is a lack of memory"),
        (-11, False, "SIGSEGV", "rank 3 was killed by SIGSEGV"),
        (-11, True, "SIGSEGV", "rank 3 was killed by SIGSEGV"),
    ],
)
def test_a_rank_that_was_killed_is_named_by_what_killed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, oom_killed: bool, name: str, message: str
) -> None:
    monkeypatch.setenv("TRAINYARD_TERMINATION_LOG", str(tmp_path / "word"))
    assert rank_processes._explain_exit(3, code, oom_killed, "KeyError: 1") == 128 - code
    word = TerminationMessage.decode((tmp_path / "word").read_text())
    assert word is not None
    assert (word.rank, word.exception, word.message) == (3, name, message)


@pytest.mark.parametrize(
    ("processes", "given", "threads"), [(1, None, "8"), (3, None, "2"), (99, None, "1"), (2, "5", "5")]
)
def test_threads_per_process(monkeypatch: pytest.MonkeyPatch, processes: int, given: str | None, threads: str) -> None:
    monkeypatch.setattr(pod_environment, "usable_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    pod_environment.set_threads(processes)
    assert os.environ["OMP_NUM_THREADS"] == threads


PODS = {
    "PET_NNODES": "4",
    "PET_NODE_RANK": "3",
    "PET_NPROC_PER_NODE": "2",
    "PET_MASTER_ADDR": "a",
    "PET_MASTER_PORT": "1",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 1)),
        ({"PET_NPROC_PER_NODE": "2"}, (0, 2, 2)),
        (PODS, (6, 2, 8)),
        (PODS | {"WORLD_SIZE": "7"}, (6, 2, 7)),
        (PODS | {"PET_NPROC_PER_NODE": "1", "RANK": "6", "WORLD_SIZE": "7"}, (6, 1, 7)),
    ],
)
def test_ranks_of_a_pod(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int, int]
) -> None:
    for name in (*PODS, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pod = pod_environment.PodEnvironment.from_environment()
    assert (pod.first_rank, pod.local_size, pod.world_size) == expected
    assert pod.rank_environment(1)["RANK"] == str(expected[0] + 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PET_NPROC_PER_NODE": "gpu"}, "PET_NPROC_PER_NODE: must be a whole number, not 'gpu'"),
        ({"PET_NNODES": "2"}, "PET_MASTER_ADDR and PET_MASTER_PORT: are needed with PET_NNODES > 1"),
    ],
)
def test_wrong_variables(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        pod_environment.PodEnvironment.from_environment()


@pytest.mark.parametrize("procs", [1, 3])
def test_the_launcher_has_one_thread_whenever_it_forks(start: Starter, procs: int) -> None:
    """A lock held by another thread at that moment would stay locked in the rank for ever."""
    (pod,) = start(
        make_config(procs, batch={"global": 12}), 1, procs, entry="tests.trainer.faults:count_threads_at_fork"
    )
    assert pod.wait(60) == 0, pod.stderr
    assert pod.stderr.splitlines() == ["threads 1"] * procs


def test_a_rank_runs_under_torchrun_too(tmp_path: Path) -> None:
    config = make_config(2, stop={"steps": 3})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    env = environment() | {
        constants.ENV_CONFIG: str(tmp_path / "config.json"),
        launcher_protocol.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        constants.ENV_METRICS_PORT: "0",
        constants.ENV_CACHE: str(tmp_path),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "trainyard_trainer.rank_process"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "termination").read_text())["step"] == 3


@pytest.mark.parametrize("threads", ["1", "2"])
def test_after_its_imports_the_launcher_can_fork(threads: str) -> None:
    """No CUDA context and no threads, however many each rank will have: both would break in a forked process."""
    program = """
from trainyard_trainer.launcher.pod_environment import set_threads
set_threads(1)
import torch
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, lambda *a: (_ for _ in ()).throw(SystemExit("CUDA was called")))
import torch._dynamo
import trainyard_trainer.launcher.main
import trainyard_trainer.rank_process
assert not torch.cuda.is_initialized()
threads = open("/proc/self/status").read().partition("Threads:")[2].split()[0]
assert threads == "1", threads
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_nothing_heavy_is_imported_before_the_stop_signals_are_caught() -> None:
    program = "import sys, trainyard_trainer.launcher.main; assert not {'torch', 'numpy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_each_group_has_one_thread_of_gloo(start: Starter) -> None:
    """With two, as torch has it, collectives of one group that overlap corrupt memory."""
    (pod,) = start(make_config(4, {"tensor": 2}), 1, 4, entry="tests.trainer.faults:count_gloo_threads")
    assert pod.wait(60) == 0, pod.stderr
    found = next(json.loads(line) for line in pod.stdout.splitlines() if '"groups"' in line)
    assert found["threads"] == found["groups"] > 1
