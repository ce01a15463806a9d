"""The flight recorder of NCCL: asked for through its pipe when the ranks hang, and kept on the checkpoint volume.

There is no NCCL here: a thread stands for torch's, which reads the pipe and writes the file
(ProcessGroupNCCL.hpp, DumpPipe). What NCCL itself writes, `make gpu-check` shows.
"""

import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.run_config import make_config
from tests.trainer.pods import Starter, finish, free_port
from trainyard.protocol import constants
from trainyard.resource.health import HealthConfig
from trainyard_trainer.launcher import flight_recorder, hang_detection
from trainyard_trainer.launcher.flight_recorder import FlightRecorder
from trainyard_trainer.runtime.world import World, collective_timeout


@pytest.fixture
def recorder(tmp_path: Path) -> FlightRecorder:
    (tmp_path / "local").mkdir()
    return FlightRecorder(3, tmp_path / "local", tmp_path / "volume" / "flight-recorder")


def serve(recorder: FlightRecorder, rank: int, delay: float = 0.0) -> None:
    """Be the thread of torch in a rank."""
    pipe = f"{recorder.variables['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}{rank}.pipe"
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def run() -> None:
        while not os.read(descriptor, 128):
            time.sleep(0.01)
        time.sleep(delay)
        Path(f"{recorder.variables['TORCH_FR_DUMP_TEMP_FILE']}{rank}").write_text("collectives")

    threading.Thread(target=run, daemon=True).start()


def test_ranks_with_nccl_are_asked_and_their_files_are_kept(
    recorder: FlightRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(recorder, 4)
    serve(recorder, 5, delay=0.3)
    # Rank 6 uses gloo: it has no pipe.
    asked = recorder.request([4, 5, 6])
    assert asked == [4, 5]
    recorder.wait(asked, time.monotonic() + 10)
    recorder.keep()
    recorder.close()
    kept = sorted((tmp_path / "volume" / "flight-recorder").iterdir())
    assert [(file.name, file.read_text()) for file in kept] == [
        ("attempt-3-rank-4", "collectives"),
        ("attempt-3-rank-5", "collectives"),
    ]
    assert f"2 ranks are in {tmp_path}/volume/flight-recorder; torchfrtrace" in capsys.readouterr().err
    assert not (tmp_path / "local").exists()


def test_a_rank_that_does_not_write_delays_the_end_no_longer_than_allowed(recorder: FlightRecorder) -> None:
    serve(recorder, 4, delay=60)
    asked = recorder.request([4])
    began = time.monotonic()
    recorder.wait(asked, began + 0.5)
    assert 0.4 < time.monotonic() - began < 20


def test_a_pipe_without_a_reader_does_not_block(recorder: FlightRecorder) -> None:
    os.mkfifo(f"{recorder.variables['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}4.pipe")
    assert recorder.request([4]) == []


def test_storage_that_hangs_or_fails_does_not_hold_up_the_launcher(
    recorder: FlightRecorder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not flight_recorder._in_child(lambda: time.sleep(3), 0.1)
    (tmp_path / "volume").write_text("not a folder")
    (tmp_path / "local" / "attempt-3-rank-0").write_text("collectives")
    recorder.keep()
    assert "the flight recorders of 1 ranks could not be copied" in capsys.readouterr().err


def test_what_a_user_has_set_stays(recorder: FlightRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "20000")
    assert recorder.variables["TORCH_FR_BUFFER_SIZE"] == "20000"


def test_a_hang_leaves_the_flight_recorders_on_the_checkpoint_volume(start: Starter, tmp_path: Path) -> None:
    config = make_config(2, stop={"steps": 1_000_000})
    config = config.replace(health=HealthConfig(hang_timeout_seconds=2))
    entry = "tests.trainer.faults:hang_in_rank_1_with_flight_recorders"
    pods = start(config, 2, entry=entry, env={constants.ENV_CHECKPOINTS: str(tmp_path)})
    assert finish(pods) == [constants.EXIT_HANG] * 2, [pod.stderr for pod in pods]
    files = sorted((tmp_path / "flight-recorder").iterdir())
    assert [file.name for file in files] == ["attempt-3-rank-0", "attempt-3-rank-1"]
    # Both pods report the hang, and none a lost peer: each has waited while the other's rank wrote.
    assert all(pod.word is not None and pod.word.hang is not None for pod in pods)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield World.from_environment()
    dist.destroy_process_group()


def test_time_outs_are_in_order(world: World) -> None:
    """Hang detection, flight recorder, kill; only then would a collective time out."""
    for seconds in (None, 60, 600, 7200):
        detected = seconds or hang_detection.FIRST_TIMEOUT
        written = flight_recorder.DUMP_SECONDS + flight_recorder.COPY_SECONDS
        assert collective_timeout(seconds) > timedelta(seconds=detected + hang_detection.CHECK_SECONDS + written)
    world.init_process_group(saves=True, hang_timeout=7200)
    assert world.timeout == timedelta(seconds=7320)
    assert world.control is not None
    # A save that takes hours on one rank is no lost peer of the others.
    assert timeout_of(world.control) == timedelta(days=1)


def timeout_of(group: dist.ProcessGroup) -> timedelta:
    options = group._get_backend(torch.device("cpu")).options
    return timedelta(seconds=options._timeout.total_seconds())


def test_groups_of_the_mesh_have_the_same_timeout(start: Starter) -> None:
    pods = start(make_config(2, {"tensor": 2}), 1, 2, entry="tests.trainer.faults:check_timeouts_of_the_mesh")
    assert finish(pods) == [0], pods[0].stderr
