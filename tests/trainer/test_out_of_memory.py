"""What a rank says when its GPU has no memory left. There is no GPU here: the figures of the allocator are set."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.gpu_faults import OUT_OF_MEMORY, find_gpu_fault
from trainyard_trainer.runtime import process_exit

GiB = 2**30
ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.00 GiB."


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory_allocated": 70 * GiB, "memory_reserved": 76 * GiB, "max_memory_allocated": 75 * GiB}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 * GiB, 80 * GiB))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot"))
    monkeypatch.setenv(launcher_protocol.ENV_ATTEMPT, "3")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_memory_leaves_an_account_and_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_CHECKPOINTS, str(tmp_path))
    found = process_exit.describe(torch.OutOfMemoryError(ERROR), rank=5, step=7)
    path = tmp_path / "memory-snapshots" / "attempt-3-rank-5.pickle"
    assert found.message == (
        f"{ERROR}; of 80.0Gi tensors hold 70.0Gi (at most 75.0Gi so far), the allocator keeps 6.00Gi besides, CUDA, "
        f"NCCL and other processes 3.00Gi; snapshot: {path}"
    )
    assert path.read_text() == "snapshot"
    # The operator recognizes it.
    fault = find_gpu_fault(f"{found.exception}: {found.message}")
    assert fault is not None
    assert fault.reason == OUT_OF_MEMORY


@pytest.mark.usefixtures("gpu")
def test_without_a_volume_or_with_a_full_one_there_is_the_account_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(constants.ENV_CHECKPOINTS, raising=False)
    assert process_exit.describe(torch.OutOfMemoryError(ERROR), 5, 7).message.endswith("other processes 3.00Gi")
    (tmp_path / "file").touch()
    monkeypatch.setenv(constants.ENV_CHECKPOINTS, str(tmp_path / "file"))
    assert "; no snapshot could be written: " in process_exit.describe(torch.OutOfMemoryError(ERROR), 5, 7).message


def test_a_gpu_that_gives_no_account_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: initialization error")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    found = process_exit.describe(torch.OutOfMemoryError(ERROR), 5, 7)
    assert found.message == f"{ERROR}; the GPU gives no account of its memory: CUDA error: initialization error"


def test_an_error_of_nccl_is_kept_with_its_last_lines() -> None:
    text = "NCCL error in: x.cpp:94, unhandled system error\nncclSystemError: failed.\nLast error:\nno shm"
    found = process_exit.describe(dist.DistBackendError(text), rank=0, step=7)
    assert found.message.endswith("ncclSystemError: failed. Last error: no shm")
    assert not found.peer_lost
