"""The launcher's own part: processors, threads, and what it may not touch before it forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.pods import environment
from trainyard_trainer import launch


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
def test_quota_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(launch, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert launch._cgroup_quota() == quota
    assert launch.usable_cpus() == (8 if quota is None else max(1, int(quota)))


@pytest.mark.parametrize(
    ("processes", "given", "threads"), [("1", None, "8"), ("3", None, "2"), ("99", None, "1"), ("2", "5", "5")]
)
def test_threads_per_process(monkeypatch: pytest.MonkeyPatch, processes: str, given: str | None, threads: str) -> None:
    monkeypatch.setattr(launch, "usable_cpus", lambda: 8)
    monkeypatch.setenv("PET_NPROC_PER_NODE", processes)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    launch._set_threads()
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_imports_leave_the_launcher_fit_to_fork() -> None:
    """No CUDA context and no threads: both would break in a forked process."""
    program = """
import torch
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, lambda *a: (_ for _ in ()).throw(SystemExit("CUDA was called")))
import torch._dynamo
import torch.distributed.launcher.api
import torch.distributed.run
import trainyard_trainer.launch
import trainyard_trainer.worker
assert not torch.cuda.is_initialized()
threads = open("/proc/self/status").read().partition("Threads:")[2].split()[0]
assert threads == "1", threads
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nothing_heavy_is_imported_before_the_stop_signals_are_caught() -> None:
    program = "import sys, trainyard_trainer.launch; assert not {'torch', 'numpy'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
