"""How a pod ends: exit code, termination message, and standard error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Pod, Starter, environment, finish, wait_until, wait_until_idle
from trainyard.protocol import constants, launcher_protocol
from trainyard_trainer.launcher.rank_processes import explain_signal

FAULTS = "tests.trainer.faults"
PROMPT = 25.0
"""Seconds in which a pod ends that is told to stop, on a machine that is busy with other tests."""
PATIENT = {constants.ENV_GRACE: "60"}
"""Environment of a pod whose launcher kills ranks that do not end only long after `PROMPT`."""


def test_success_leaves_the_final_progress(start: Starter) -> None:
    pods = start(make_config(2), 2)
    assert finish(pods) == [0, 0]
    words = [pod.word for pod in pods]
    assert words[1] is None
    assert words[0] is not None
    assert (words[0].rank, words[0].exception, words[0].step) == (0, None, 6)
    assert words[0].progress is not None
    assert words[0].progress.total_steps == 6
    assert [pod.stderr for pod in pods] == ["", ""]


def test_ends_cleanly_every_time(start: Starter) -> None:
    """A hang at the end that happens once in 50 runs is found by these ten in one of five runs of this test."""
    config = make_config(2, stop={"steps": 2})
    for _ in range(10):
        assert finish(start(config, 1, 2)) == [0]


@pytest.mark.parametrize(("pods", "procs"), [(2, 1), (1, 2)])
def test_an_exception_is_distinguished_from_its_consequences(start: Starter, pods: int, procs: int) -> None:
    started = start(make_config(2, stop={"steps": 9}), pods, procs, entry=f"{FAULTS}:raise_in_rank_1")
    assert finish(started) == [1] * pods
    word = started[-1].word
    assert word is not None
    assert (word.rank, word.exception, word.step) == (1, "ZeroDivisionError", 3)
    assert (word.message, word.peer_lost) == ("a fault in the model", False)
    assert started[-1].stderr.count("Traceback") == 1
    assert "with a second line" in started[-1].stderr
    assert_lost_peer(started[0], pods)


@pytest.mark.parametrize(("pods", "procs"), [(2, 1), (1, 2)])
def test_a_kill_is_distinguished_from_its_consequences(start: Starter, pods: int, procs: int) -> None:
    started = start(make_config(2, stop={"steps": 9}), pods, procs, entry=f"{FAULTS}:die_in_rank_1")
    assert finish(started)[-1] == 137
    word = started[-1].word
    assert word is not None
    assert (word.rank, word.exception, word.peer_lost) == (1, "SIGKILL", False)
    assert "lack of memory" in word.message
    assert_lost_peer(started[0], pods)


SERVER = {"data": {"mode": "parameterServer"}}


def test_death_of_the_parameter_server_is_distinguished_from_its_consequences(start: Starter) -> None:
    first, second, server = start(make_config(2, SERVER, stop={"steps": 1_000_000}), 2)
    first.wait_for_step(3)
    os.kill(server.ranks()[0], signal.SIGKILL)
    assert finish([first, second, server]) == [1, 1, 137]
    for pod, rank, lost in ((first, 0, True), (second, 1, True), (server, 2, False)):
        assert pod.word is not None
        assert (pod.word.rank, pod.word.peer_lost) == (rank, lost)
        assert "Traceback" not in pod.stderr


def test_parameter_server_ends_with_its_workers(start: Starter) -> None:
    pods = start(make_config(2, SERVER, stop={"steps": 9}), 2, entry=f"{FAULTS}:raise_in_rank_1")
    assert finish(pods) == [1, 1, 1]
    words = [pod.word for pod in pods]
    assert [(w.exception, w.step, w.peer_lost) for w in words if w] == [
        ("RuntimeError", 3, True),
        ("ZeroDivisionError", 3, False),
        ("RuntimeError", 3, True),
    ]


def assert_lost_peer(pod: Pod, pods: int) -> None:
    if pods == 1:
        return
    word = pod.word
    assert word is not None
    assert word.peer_lost
    assert word.rank == 0
    assert word.step == 3
    assert "/" not in word.message.partition("[")[0]
    assert "Traceback" not in pod.stderr
    assert "lost a peer" in pod.stderr


def test_the_group_waits_for_a_late_pod_longer_than_for_a_collective(start: Starter) -> None:
    """Its pod may wait for a node or an image, as long as spec.health.startupTimeoutSeconds allows."""
    pods = start(make_config(2), 2, entry=f"{FAULTS}:second_pod_joins_later_than_a_collective_may_take")
    assert finish(pods) == [0, 0], [pod.stderr for pod in pods]


def test_a_group_that_stays_incomplete_says_how_many_have_arrived(start: Starter) -> None:
    config = make_config(2)
    config = config.replace(health=config.health.replace(startup_timeout_seconds=2))
    first, second = start(config, 2, entry=f"{FAULTS}:second_pod_never_comes")
    assert finish([first, second]) == [1, 0]
    assert first.word is not None
    assert first.word.message == "1 of 2 ranks arrived within 2 s (spec.health.startupTimeoutSeconds)"
    assert first.word.peer_lost


def test_a_rank_that_the_watchdog_of_nccl_aborts_has_lost_a_peer(start: Starter) -> None:
    _, pod = pods = start(make_config(2, stop={"steps": 9}), 2, entry=f"{FAULTS}:abort_in_rank_1_as_nccl_does")
    assert finish(pods)[-1] == 134
    word = pod.word
    assert word is not None
    assert (word.rank, word.exception, word.peer_lost) == (1, "SIGABRT", True)
    assert word.message == "rank 1 was killed by SIGABRT: Watchdog caught collective operation timeout"
    assert "[E ProcessGroupNCCL.cpp:629]" in pod.stderr


@pytest.mark.parametrize(
    ("stderr", "lost", "message"),
    [
        ("", False, "rank 3 was killed by SIGABRT"),
        ("double free or corruption (out)\n", False, "rank 3 was killed by SIGABRT"),
        (
            "[rank3]:[E ProcessGroupNCCL.cpp:1895] [PG ID 0 Rank 3] Process group watchdog thread terminated with "
            "exception: CUDA error: an illegal memory access was encountered\n",
            False,
            "rank 3 was killed by SIGABRT: CUDA error: an illegal memory access was encountered",
        ),
        (
            "terminate called after throwing an instance of 'c10::DistBackendError'\n"
            "  what():  [PG ID 0 Rank 3] Process group watchdog thread terminated with exception: NCCL error: "
            "remote process exited or there was a network error, NCCL version 2.27\n",
            True,
            "rank 3 was killed by SIGABRT: NCCL error: remote process exited or there was a network error, NCCL "
            "version 2.27",
        ),
    ],
)
def test_what_an_aborted_rank_has_written_says_whether_it_is_the_cause(stderr: str, lost: bool, message: str) -> None:
    found = explain_signal(3, signal.SIGABRT, False, stderr)
    assert (found.rank, found.exception, found.peer_lost, found.message) == (3, "SIGABRT", lost, message)


def test_pod_that_waits_for_a_dead_one_can_be_stopped(start: Starter) -> None:
    """While the group forms, gloo does not see that a peer died; the operator does, and stops the others."""
    pods = start(make_config(2), 2, entry=f"{FAULTS}:die_while_joining", env=PATIENT)
    assert pods[1].wait(30) == 137
    assert seconds_to_stop(pods[0]) < PROMPT


def seconds_to_stop(pod: Pod) -> float:
    """Tell a pod to stop, and return how long it takes until it ends."""
    began = time.monotonic()
    os.kill(pod.pid, signal.SIGTERM)
    assert pod.wait(30) == 143
    return time.monotonic() - began


def is_connected(rank: int) -> bool:
    """Return whether a rank has a connection: that to the store is its first."""
    return any(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(rank).net_connections("tcp"))


def test_store_lost_while_the_group_forms(start: Starter) -> None:
    pods = start(make_config(4), 3, entry=f"{FAULTS}:last_pod_never_comes", env={"WORLD_SIZE": "4"})
    for pod in pods[:2]:
        wait_until(lambda pod=pod: len(pod.ranks()) == 1, 30)  # type: ignore[misc]
    ranks = [rank for pod in pods[:2] for rank in pod.ranks()]
    wait_until(lambda: all(map(is_connected, ranks)), 30)
    wait_until_idle(ranks)  # they wait for ranks 2 and 3
    os.kill(pods[0].pid, signal.SIGKILL)
    assert pods[1].wait(30) == 1
    word = pods[1].word
    assert word is not None
    assert word.peer_lost
    assert "Traceback" not in pods[1].stderr


def test_a_signal_to_stop_ends_a_pod_that_is_still_importing(start: Starter) -> None:
    (pod,) = start(make_config(1), 1, entry=f"{FAULTS}:stop_while_importing")
    assert pod.wait(30) == 143
    assert pod.word is not None
    assert pod.word.message == "told to stop before the training began"
    assert pod.stdout == ""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_stops_at_once_inside_a_collective(start: Starter, stop: signal.Signals) -> None:
    pods = start(make_config(2, stop={"steps": 9}), 2, entry=f"{FAULTS}:hang_in_rank_1", env=PATIENT)
    pods[0].wait_for_step(3)
    wait_until_idle([rank for pod in pods for rank in pod.ranks()])  # rank 0 waits for rank 1 in C++
    began = time.monotonic()
    for pod in pods:
        os.kill(pod.pid, stop)
    assert finish(pods, 30) == [128 + stop] * 2
    assert time.monotonic() - began < PROMPT
    for rank, pod in enumerate(pods):
        assert pod.word is not None
        assert (pod.word.rank, pod.word.exception, pod.word.step) == (rank, stop.name, 3)
        assert pod.stderr == ""


def test_stops_at_once_while_other_pods_are_missing(start: Starter) -> None:
    config = make_config(2)
    pods = start(config, 2, entry=f"{FAULTS}:second_pod_never_comes", env=PATIENT)
    wait_until(lambda: len(pods[0].ranks()) == 1, 30)
    wait_until_idle(pods[0].ranks())
    assert seconds_to_stop(pods[0]) < PROMPT
    assert pods[0].word is not None
    assert pods[0].word.exception == "SIGTERM"
    assert pods[1].wait(30) == 0


def test_processes_do_not_outlive_their_launcher(start: Starter) -> None:
    (pod,) = start(make_config(2, stop={"steps": 1_000_000}), 1, 2)
    pod.wait_for_step(2)
    ranks = pod.ranks()
    assert len(ranks) == 2
    os.kill(pod.pid, signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in ranks), 30)


def test_termination_messages_of_several_ranks(start: Starter) -> None:
    """The first cause wins over later ones, and any cause over a lost peer, in any order."""
    from trainyard.protocol.termination import TerminationMessage
    from trainyard_trainer.runtime import process_exit

    lost = TerminationMessage(rank=0, exception="RuntimeError", peer_lost=True)
    cause = TerminationMessage(rank=1, exception="ValueError", message="short")
    later = TerminationMessage(rank=2, exception="KeyError", message="m" * 3000)
    stop = TerminationMessage(rank=3, exception="SIGTERM")
    path = start.folder / "last-word"
    for order, expected in (
        ([lost, cause, later], cause),
        ([later, lost, cause], later),
        ([lost, stop], lost),
        ([stop, lost, cause], stop),
        ([cause, stop], cause),
        ([lost, later, stop], later),
    ):
        path.write_text("not one of ours")
        inode = path.stat().st_ino
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(launcher_protocol.ENV_TERMINATION_LOG, str(path))
            for word in order:
                process_exit.write_termination_message(word)
        assert TerminationMessage.decode(path.read_text()) == expected
        assert path.stat().st_ino == inode


def test_an_unwritable_termination_message_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainyard.protocol.termination import TerminationMessage
    from trainyard_trainer.runtime import process_exit

    monkeypatch.setenv(launcher_protocol.ENV_TERMINATION_LOG, "/nowhere/at/all")
    process_exit.write_termination_message(TerminationMessage(rank=0))
    assert "/nowhere/at/all" in capsys.readouterr().err


def test_real_command_refuses_a_missing_text(tmp_path: Path) -> None:
    """As in a container: interpreter, launcher and rank; here without any PET_ variable."""
    config = make_config(1, data={"path": "/data/missing.txt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    env = environment() | {
        constants.ENV_CONFIG: str(tmp_path / "config.json"),
        launcher_protocol.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        constants.ENV_METRICS_PORT: "0",
    }
    command = [sys.executable, "-m", "trainyard_trainer"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == constants.EXIT_INVALID_CONFIG
    assert done.stderr == (
        "error: spec.trainer.data.path: /data/missing.txt does not exist in the worker; mount it through "
        "spec.workers.template, or correct the path\n"
    )
    assert json.loads((tmp_path / "termination").read_text())["exception"] == "ConfigError"
