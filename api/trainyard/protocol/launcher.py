"""The first process of a worker pod, as far as it takes orders: of the built-in trainer, and of a program of one's own.

A group whose processes have failed while its pods live is started again inside them: nothing is scheduled, pulled or
imported again. Pods hold no credentials for the cluster, so it is the operator that calls (`launcher_protocol`): the
kubelet sees by the readiness probe that an attempt has ended, the operator sees it by the pod, asks how, and sends
an order or deletes the pod. A launcher that hears nothing for a while ends as if there were no operator.

Run as a program it starts the command given as its arguments, once per attempt. The operator mounts this file and
`launcher_protocol.py` into the user's image for that, so both need only the standard library of Python 3.8.

It has one thread, so the port is served between two looks at the processes. The kernel sends SIGIO when there is
something to read, which ends the wait between two looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hmac
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn, Tuple

if __package__:
    from trainyard.protocol import launcher_protocol as protocol
else:  # run as a program: the operator mounts both files into one folder of the user's image
    import launcher_protocol as protocol  # type: ignore[import-not-found, no-redef]

REQUEST_TIMEOUT_SECONDS = 60.0
"""How long a pod whose processes have failed waits for orders."""
MIN_ATTEMPT_SECONDS = 30.0
"""Seconds: a program of one's own that fails sooner has perhaps never begun to train, and may need another pod."""
REAP_SECONDS = 1.0
"""Time in which a process that was killed is gone, unless it is stuck in the kernel."""
PORTS = 100
"""A program of one's own finds its peers on another port in each attempt, so many in turn: none of an earlier attempt
that is still about can meet those of a later one."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OWN_SIGNALS = (signal.SIGCHLD, signal.SIGIO)
_CALL_TIMEOUT_SECONDS = 2.0
"""How long a caller may take to say what it wants."""
_MAX_REQUEST_BYTES = 8192
"""Bytes."""

# <fcntl.h>, <linux/prctl.h>
_F_SETOWN_EX = 15
_F_OWNER_TID = 0
_PR_SET_CHILD_SUBREAPER = 36

Response = Tuple[HTTPStatus, str]


class Launcher:
    """The attempt that a pod is in, and what it has been told to do next."""

    def __init__(self, attempt: int, port: Port | None = None) -> None:
        """Without a port there are no orders, and every attempt is the last one of its pod."""
        self.attempt = attempt
        self._port = port
        self._exit_info: dict[str, str | int] | None = None
        self._probed = False
        self.restart_requested = False
        """Another attempt is to begin, in this pod; whatever still runs of the one before is to be killed."""
        self._released = False

    @classmethod
    def from_environment(cls) -> Launcher:
        """With a port, if the operator has given this pod a token."""
        attempt = int(os.environ.get(protocol.ENV_ATTEMPT, "0"))
        token = os.environ.pop(protocol.ENV_TOKEN, "")  # not for the ranks, nor for what they start
        if not token:
            return cls(attempt)
        number = int(os.environ.get(protocol.ENV_LAUNCHER_PORT) or protocol.LAUNCHER_PORT)
        try:
            return cls(attempt, Port(token, number))
        except OSError as error:
            print(f"no orders are taken: port {number}: {error.strerror}", file=sys.stderr, flush=True)
            return cls(attempt)

    def begin_attempt(self) -> None:
        """The ranks of the attempt are about to be forked."""
        os.environ[protocol.ENV_ATTEMPT] = str(self.attempt)
        self._exit_info, self._probed, self.restart_requested = None, False, False

    def close_port(self) -> None:
        """In a process that has been forked: the port is the launcher's."""
        if self._port is not None:
            self._port.close()

    def poll_requests(self) -> bool:
        """Response whoever has called. Whether another attempt is to begin now."""
        if self._port is not None:
            self._port.poll(self._answer)
        return self.restart_requested

    def wait_for_request(self, exit_code: int) -> bool:
        """Say that the attempt has ended, and wait for orders. Whether another attempt is to begin, in this pod.

        Nobody would learn of the end of an attempt that the kubelet has not once seen ready.
        """
        if not self._probed:
            return False
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._exit_info = {"exitCode": exit_code, "message": read_termination_message(), "at": now}
        deadline = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while not self.poll_requests() and not self._released and time.monotonic() < deadline:
            if wait_for_signal(1.0) in STOP_SIGNALS:
                return False
        return self.restart_requested

    def _answer(self, method: str, path: str, trusted: bool) -> Response:
        if (method, path) == ("GET", protocol.READY_PATH):
            if self._exit_info is not None or self.restart_requested:
                return HTTPStatus.SERVICE_UNAVAILABLE, f"attempt {self.attempt} has ended\n"
            self._probed = True
            return HTTPStatus.OK, f"attempt {self.attempt} runs\n"
        if not trusted:
            return HTTPStatus.UNAUTHORIZED, "the job's token is needed\n"
        if (method, path) == ("GET", protocol.STATE_PATH):
            return HTTPStatus.OK, self._state()
        if (method, path) == ("POST", protocol.RELEASE_PATH):
            self._released = self._exit_info is not None
            return (HTTPStatus.ACCEPTED if self._released else HTTPStatus.CONFLICT), self._state()
        number = path[len(protocol.ATTEMPT_PATH) :]
        if method == "POST" and path.startswith(protocol.ATTEMPT_PATH) and number.isdecimal():
            return self._request_restart(int(number))
        return HTTPStatus.NOT_FOUND, f"there is no {method} {path}\n"

    def _request_restart(self, attempt: int) -> Response:
        """An order may come twice. One for an older attempt comes from an operator that is behind."""
        if attempt < self.attempt or (attempt == self.attempt and self._exit_info is not None):
            return HTTPStatus.CONFLICT, self._state()
        if attempt > self.attempt:
            self.attempt, self._exit_info, self.restart_requested = attempt, None, True
        return HTTPStatus.ACCEPTED, self._state()

    def _state(self) -> str:
        ending = {} if self._exit_info is None else {"exitInfo": self._exit_info}
        return json.dumps({"attempt": self.attempt, **ending})


@dataclass
class _Connection:
    """A caller that has not yet said all."""

    connection: socket.socket
    until: float
    said: bytes = field(default=b"")


class Port:
    """A small HTTP server that never waits: requests have no body, and each connection is for one."""

    def __init__(self, token: str, number: int) -> None:
        """Listen. `token`: what a caller must know to be trusted.

        Raises:
            OSError: the port is in use.
        """
        self._token = token.encode()
        self._calls: list[_Connection] = []
        self._listener = socket.create_server(("", number), backlog=64)
        self.number: int = self._listener.getsockname()[1]
        self._signal_on_input(self._listener)

    def close(self) -> None:
        """Close whatever is open."""
        for call in self._calls:
            call.connection.close()
        self._listener.close()

    def poll(self, answer: Callable[[str, str, bool], Response]) -> None:
        """Response what has been asked since the last time, given method, path, and whether the caller is trusted."""
        self._accept()
        for call in list(self._calls):
            if self._receive(call):
                code, text = answer(*self._parse(call.said))
                _reply(call.connection, code, text)
            elif time.monotonic() < call.until:
                continue
            call.connection.close()
            self._calls.remove(call)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody, or somebody who has gone again
                return
            self._signal_on_input(connection)
            self._calls.append(_Connection(connection, time.monotonic() + _CALL_TIMEOUT_SECONDS))

    def _receive(self, call: _Connection) -> bool:
        """Whether a caller has said all."""
        try:
            while more := call.connection.recv(_MAX_REQUEST_BYTES):
                call.said += more
                if len(call.said) > _MAX_REQUEST_BYTES:
                    break
            call.until = 0.0  # no more will come, or too much has
        except BlockingIOError:
            pass
        except OSError:
            call.until = 0.0
        return b"\r\n\r\n" in call.said

    def _parse(self, said: bytes) -> tuple[str, str, bool]:
        head, *lines = said.partition(b"\r\n\r\n")[0].split(b"\r\n")
        method, path, *_ = [*head.split(b" "), b"", b""]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        given = headers.get(b"authorization", b"").replace(b"Bearer ", b"", 1)
        trusted = hmac.compare_digest(given, self._token)
        return method.decode("ascii", "replace"), path.decode("ascii", "replace"), trusted

    def _signal_on_input(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # To this thread, and no other: the signal is blocked here, and would end the process anywhere else.
        owner = struct.pack("ii", _F_OWNER_TID, threading.get_native_id())
        fcntl.fcntl(connection, _F_SETOWN_EX, owner)
        fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)


def _reply(connection: socket.socket, code: HTTPStatus, text: str) -> None:
    kind = "application/json" if text.startswith("{") else "text/plain"
    head = f"HTTP/1.1 {code.value} {code.phrase}\r\nContent-Type: {kind}\r\n"
    body = text.encode()
    with contextlib.suppress(OSError):  # whoever has gone will ask again
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


# --- processes ------------------------------------------------------------------------------------------------


def block_signals() -> None:
    """Let all signals wait until `wait_for_signal` takes them. The mask passes to what this process forks or starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, *_OWN_SIGNALS))


def unblock_launcher_signals() -> None:
    """Undo that, in a process that has been forked, for those that are the launcher's alone."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OWN_SIGNALS)


def wait_for_signal(seconds: float) -> signal.Signals | None:
    """The next of all that are held, or that comes within a time; None if none does."""
    found = signal.sigtimedwait((*STOP_SIGNALS, *_OWN_SIGNALS), max(0.0, seconds))
    return None if found is None else signal.Signals(found.si_signo)


def become_subreaper() -> None:
    """Become the parent of what processes leave behind, as process 1 of a container is anyway."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children() -> bool:
    """Kill what an attempt has started and left behind. Whether nothing is left.

    A process that writes a checkpoint outlives its rank, and must not go on beside a later attempt.
    """
    deadline = time.monotonic() + REAP_SECONDS
    while True:
        children = [pid for pid, parent in _processes() if parent == os.getpid()]
        if not children:
            return True
        if time.monotonic() > deadline:
            return False
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)


def _processes() -> Iterator[tuple[int, int]]:
    """All processes, with their parents."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def read_termination_message() -> str:
    """The pod's termination message as it stands."""
    try:
        return termination_message_path().read_text()
    except OSError:
        return ""


def clear_termination_message() -> None:
    """Take it back: another attempt begins."""
    if read_termination_message():
        termination_message_path().write_text("")  # in place and never by rename: in a pod the file is a mount point


def termination_message_path() -> Path:
    """Where the kubelet looks for the termination message."""
    return Path(os.environ.get(protocol.ENV_TERMINATION_LOG) or protocol.TERMINATION_LOG)


# --- a program of one's own -----------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command that the arguments are, until it succeeds, or fails and no order comes to start it again."""
    block_signals()
    become_subreaper()
    launcher = Launcher.from_environment()
    first = launcher.attempt
    while True:
        launcher.begin_attempt()
        began = time.monotonic()
        code, told = _run(launcher, _environment(launcher.attempt - first))
        over = told or not kill_children()
        hopeless = code == 0 or time.monotonic() - began < MIN_ATTEMPT_SECONDS
        if over or not (launcher.restart_requested or (not hopeless and launcher.wait_for_request(code))):
            sys.exit(code)
        clear_termination_message()


def _environment(restarts: int) -> dict[str, str]:
    """What the command finds: the port of its rendezvous is another one after each restart."""
    environment = dict(os.environ)
    for name in ("MASTER_PORT", "PET_MASTER_PORT"):
        if name in environment:
            environment[name] = str(int(environment[name]) + restarts % PORTS)
    return environment


def _release_all_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _run(launcher: Launcher, environment: dict[str, str]) -> tuple[int, bool]:
    """One attempt. Returns the exit code that the pod would have, and whether it was told to stop."""
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            env=environment,
            start_new_session=True,
            preexec_fn=_release_all_signals,  # noqa: PLW1509 (this process has no other thread)
        )
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 127, False
    told = False
    while child.poll() is None and not launcher.poll_requests():
        received = wait_for_signal(1.0)
        if received in STOP_SIGNALS:
            told = True
            child.send_signal(received)
    code = child.poll() or 0
    return (128 - code if code < 0 else code), told


if __name__ == "__main__":
    main()
