"""Restart in place: another attempt in the same pods, on request, and only where it can help."""

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.run_config import make_config
from tests.trainer.pods import Pod, Starter, finish, wait_until
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher import Launcher, unblock_launcher_signals, wait_for_signal
from trainyard.protocol.launcher_port import Port
from trainyard.protocol.launcher_state import ATTEMPT_PATH, READY_PATH, RELEASE_PATH, STATE_PATH, PodState

TOKEN = "a secret"
ENV = {launcher_protocol.ENV_TOKEN: TOKEN}
FAULTS = "tests.trainer.faults"


def call(port: int, path: str, method: str = "GET", token: str | None = TOKEN) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ready(pod: Pod) -> bool:
    return call(pod.launcher_port, READY_PATH)[0] == 200


def state(pod: Pod) -> PodState:
    code, text = call(pod.launcher_port, STATE_PATH)
    assert code == 200
    return PodState.model_validate_json(text)


def request_attempt(pod: Pod, attempt: int) -> int:
    return call(pod.launcher_port, f"{ATTEMPT_PATH}{attempt}", "POST")[0]


def attempts(pod: Pod) -> list[int]:
    return [json.loads(line)["attempt"] for line in pod.stdout.splitlines() if '"step":' in line]


@pytest.fixture
def running(start: Starter, tmp_path: Path) -> Iterator[list[Pod]]:
    """Two pods with two ranks each, three steps into attempt 3, which save a checkpoint in each step."""
    env = ENV | {constants.ENV_CHECKPOINTS: str(tmp_path)}
    checkpoint = {"everySteps": 1, "async": False}
    config = make_config(4, stop={"steps": 100_000}, checkpoint=checkpoint)
    pods = start(config, 2, 2, env=env)
    pods[0].wait_for_step(3)
    assert all(ready(pod) for pod in pods)
    yield pods
    for pod in pods:
        with suppress(ProcessLookupError):
            os.killpg(pod.pid, signal.SIGKILL)


def test_group_restarts_inside_its_pods(running: list[Pod]) -> None:
    first, second = running
    old = set(first.ranks() + second.ranks())
    os.kill(second.ranks()[1], signal.SIGKILL)
    wait_until(lambda: not ready(second), 5, lambda: second.stderr)
    held = state(second)
    assert held.attempt == 3
    assert held.exit_info is not None
    assert held.exit_info.exit_code == 128 + signal.SIGKILL
    assert json.loads(held.exit_info.message)["rank"] == 3
    assert [request_attempt(pod, 4) for pod in running] == [202, 202]
    wait_until(lambda: 4 in attempts(first), 20, lambda: first.stderr)
    assert all(ready(pod) for pod in running)
    assert state(first) == PodState(attempt=4)
    assert second.word is None, "the termination message of attempt 3 is cleared"
    resumed = next(json.loads(line) for line in first.stdout.splitlines() if "resumedStep" in line)
    assert resumed["resumedStep"] >= 1
    assert not old & {p.pid for p in psutil.process_iter() if p.status() != psutil.STATUS_ZOMBIE}


def test_restart_request_kills_ranks_that_still_run(running: list[Pod]) -> None:
    """As after the loss of a peer that the ranks notice only by a timeout."""
    old = [rank for pod in running for rank in pod.ranks()]
    for rank in old:
        os.kill(rank, signal.SIGSTOP)
    assert [request_attempt(pod, 4) for pod in running] == [202, 202]
    wait_until(lambda: 4 in attempts(running[0]), 20, lambda: running[0].stderr)
    assert not any(psutil.pid_exists(rank) for rank in old)


def test_requests_for_old_attempts_are_refused_and_repeated_ones_do_nothing(running: list[Pod]) -> None:
    ranks = running[0].ranks()
    assert request_attempt(running[0], 2) == 409
    assert request_attempt(running[0], 3) == 202
    assert call(running[0].launcher_port, RELEASE_PATH, "POST")[0] == 409
    assert running[0].ranks() == ranks


def test_release_ends_the_pod_with_the_exit_code_of_its_ranks(running: list[Pod]) -> None:
    os.kill(running[0].ranks()[0], signal.SIGKILL)
    wait_until(lambda: not any(ready(pod) for pod in running), 10, lambda: running[0].stderr)
    assert request_attempt(running[0], 3) == 409, "attempt 3 has ended"
    assert [call(pod.launcher_port, RELEASE_PATH, "POST")[0] for pod in running] == [202, 202]
    assert finish(running, 20) == [137, 1]
    assert running[0].word is not None
    assert running[0].word.rank == 0


def test_waiting_pod_ends_on_sigterm(running: list[Pod]) -> None:
    os.kill(running[0].ranks()[0], signal.SIGKILL)
    wait_until(lambda: not ready(running[0]), 20, lambda: running[0].stderr)
    os.kill(running[0].pid, signal.SIGTERM)
    assert running[0].wait(20) == 137


@pytest.mark.parametrize(
    ("entry", "env", "probed", "reason"),
    [
        ("die_in_rank_1", {}, True, "without a token no request is accepted"),
        ("die_in_rank_1", ENV, False, "without a readiness probe the operator would not notice the end"),
        ("die_while_joining", ENV, True, "without a step the pod itself may be the cause"),
    ],
)
def test_pod_exits_without_waiting_where_no_restart_is_possible(
    start: Starter, entry: str, env: dict[str, str], probed: bool, reason: str
) -> None:
    (pod,) = start(make_config(2), 1, 2, entry=f"{FAULTS}:{entry}", env=env)
    if probed and env:
        wait_until(lambda: answers_ready(pod) or not pod.is_alive, 30, lambda: pod.stderr)
    began = time.monotonic()
    assert pod.wait(30) == 137, reason
    assert time.monotonic() - began < 20


def answers_ready(pod: Pod) -> bool:
    """Whether the port is open and answers that the attempt runs."""
    try:
        return ready(pod)
    except OSError:
        return False


# --- the port alone ------------------------------------------------------------------------------------------


class Harness:
    """A launcher and its port, polled by the test."""

    def __init__(self) -> None:
        self.port = Port(TOKEN, 0)
        self.launcher = Launcher(3, self.port)

    def send(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port.number), timeout=2) as caller:
            caller.sendall(request)
            assert wait_for_signal(2) is signal.SIGIO, "a connection wakes the launcher"
            time.sleep(0.02)  # the connection may arrive before the request
            self.launcher.poll_requests()
            return caller.recv(4096)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    monkeypatch.setenv(launcher_protocol.ENV_ATTEMPT, "3")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO, signal.SIGCHLD})
    harness = Harness()
    yield harness
    harness.port.close()
    while wait_for_signal(0) is not None:
        pass
    unblock_launcher_signals()


def request(path: str, token: Any = TOKEN, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nauthorization: Bearer {token}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET /readyz HTTP/1.1\r\n\r\n", 200),
        (b"GET /v1/state HTTP/1.1\r\n\r\n", 401),
        (request(STATE_PATH, "another"), 401),
        (request(f"{ATTEMPT_PATH}4", "", "POST"), 401),
        (request(STATE_PATH), 200),
        (request(f"{ATTEMPT_PATH}4", method="POST"), 202),
        (request(f"{ATTEMPT_PATH}-4", method="POST"), 404),
        (request(f"{ATTEMPT_PATH}4", method="GET"), 404),
        (b"\r\n\r\n", 401),
        (b"\xff\xfe\r\n\r\n", 401),
    ],
)
def test_response_codes(harness: Harness, sent: bytes, code: int) -> None:
    assert harness.send(sent).startswith(f"HTTP/1.1 {code} ".encode())
    assert harness.launcher.restart_requested == (code == 202)


@pytest.mark.parametrize("address", ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])])
def test_the_port_is_open_for_both_families(harness: Harness, address: str) -> None:
    with socket.create_connection((address, harness.port.number), timeout=2) as caller:
        caller.sendall(request(READY_PATH))
        assert wait_for_signal(2) is signal.SIGIO
        time.sleep(0.02)
        harness.launcher.poll_requests()
        assert b" 200 OK" in caller.recv(4096)


def test_slow_client_does_not_delay_others(harness: Harness) -> None:
    with socket.create_connection(("127.0.0.1", harness.port.number)) as slow:
        slow.sendall(b"GET /read")
        harness.launcher.poll_requests()
        assert harness.send(request(READY_PATH)).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"yz HTTP/1.1\r\n\r\n")
        harness.launcher.poll_requests()
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"x" * 20_000])
def test_silent_or_oversized_request_is_dropped(harness: Harness, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", harness.port.number), timeout=5) as caller:
        caller.sendall(sent)
        deadline = time.monotonic() + 4
        while harness.port._connections or time.monotonic() < deadline - 3.9:
            assert time.monotonic() < deadline
            harness.launcher.poll_requests()
            time.sleep(0.02)


def test_token_is_removed_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher_protocol.ENV_TOKEN, TOKEN)
    monkeypatch.setenv(launcher_protocol.ENV_LAUNCHER_PORT, "0")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO, signal.SIGCHLD})
    launcher = Launcher.from_environment()
    launcher.close_port()
    unblock_launcher_signals()
    assert launcher_protocol.ENV_TOKEN not in os.environ
