"""Orders to a launcher: the port on which it listens for them, and the attempt that it is in. Free of torch.

A group whose processes have failed while its pods live is started again inside them: no scheduling, no image, and
torch is imported already. Pods hold no credentials for the cluster, so it is the operator that calls
(`trainyard.supervision`): the kubelet sees by the readiness probe that an attempt has ended, the operator sees it by
the pod, asks how, and sends an order or deletes the pod. A launcher that hears nothing for a while ends as if there
were no operator.

The launcher has one thread, so the port is served between two looks at the ranks. The kernel sends SIGIO when there is
something to read, which ends the wait between two looks.
"""

import contextlib
import fcntl
import hmac
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus

from trainyard import contract
from trainyard.supervision import ATTEMPT_PATH, READY_PATH, RELEASE_PATH, STATE_PATH, Ending, PodState
from trainyard_trainer import ending

HOLD_SECONDS = 60.0
"""How long a pod whose ranks have failed waits for orders."""
_CALL_SECONDS = 2.0
"""How long a caller may take to say what it wants."""
_LONGEST_CALL = 8192
"""Bytes."""

# <fcntl.h>
_F_SETOWN_EX = 15
_F_OWNER_TID = 0

Answer = tuple[HTTPStatus, str]


class Supervisor:
    """The attempt that a pod is in, and what it has been told to do next."""

    def __init__(self, attempt: int, port: "Port | None" = None) -> None:
        """Without a port there are no orders, and every attempt is the last one of its pod."""
        self.attempt = attempt
        self._port = port
        self._ending: Ending | None = None
        self._seen = False
        self.ordered = False
        """Another attempt is to begin, in this pod; whatever still runs of the one before is to be killed."""
        self._released = False

    @classmethod
    def from_environment(cls) -> "Supervisor":
        """With a port, if the operator has given this pod a token."""
        attempt = int(os.environ.get(contract.ENV_ATTEMPT, "0"))
        token = os.environ.pop(contract.ENV_TOKEN, "")  # not for the ranks, nor for what they start
        if not token:
            return cls(attempt)
        number = int(os.environ.get(contract.ENV_SUPERVISOR_PORT) or contract.SUPERVISOR_PORT)
        try:
            return cls(attempt, Port(token, number))
        except OSError as error:
            print(f"no orders are taken: port {number}: {error.strerror}", file=sys.stderr, flush=True)
            return cls(attempt)

    def begin(self) -> None:
        """The ranks of the attempt are about to be forked."""
        os.environ[contract.ENV_ATTEMPT] = str(self.attempt)
        self._ending, self._seen, self.ordered = None, False, False

    def leave_port(self) -> None:
        """In a process that has been forked: the port is the launcher's."""
        if self._port is not None:
            self._port.close()

    def attend(self) -> bool:
        """Answer whoever has called. Whether another attempt is to begin now."""
        if self._port is not None:
            self._port.attend(self._answer)
        return self.ordered

    def hold(self, exit_code: int) -> bool:
        """Say that the attempt has ended, and wait for orders. Whether another attempt is to begin, in this pod.

        Nobody would learn of the end of an attempt that the kubelet has not once seen ready.
        """
        if not self._seen:
            return False
        self._ending = Ending(exit_code=exit_code, message=ending.last_word(), at=datetime.now(UTC))
        deadline = time.monotonic() + HOLD_SECONDS
        while not self.attend() and not self._released and time.monotonic() < deadline:
            if ending.next_signal(1.0) in ending.STOP_SIGNALS:
                return False
        return self.ordered

    def _answer(self, method: str, path: str, trusted: bool) -> Answer:
        if (method, path) == ("GET", READY_PATH):
            if self._ending is not None or self.ordered:
                return HTTPStatus.SERVICE_UNAVAILABLE, f"attempt {self.attempt} has ended\n"
            self._seen = True
            return HTTPStatus.OK, f"attempt {self.attempt} runs\n"
        if not trusted:
            return HTTPStatus.UNAUTHORIZED, "the job's token is needed\n"
        if (method, path) == ("GET", STATE_PATH):
            return HTTPStatus.OK, self._state()
        if (method, path) == ("POST", RELEASE_PATH):
            self._released = self._ending is not None
            return (HTTPStatus.ACCEPTED if self._released else HTTPStatus.CONFLICT), self._state()
        number = path.removeprefix(ATTEMPT_PATH)
        if method == "POST" and path.startswith(ATTEMPT_PATH) and number.isdecimal():
            return self._order(int(number))
        return HTTPStatus.NOT_FOUND, f"there is no {method} {path}\n"

    def _order(self, attempt: int) -> Answer:
        """An order may come twice. One for an older attempt comes from an operator that is behind."""
        if attempt < self.attempt or (attempt == self.attempt and self._ending is not None):
            return HTTPStatus.CONFLICT, self._state()
        if attempt > self.attempt:
            self.attempt, self._ending, self.ordered = attempt, None, True
        return HTTPStatus.ACCEPTED, self._state()

    def _state(self) -> str:
        return PodState(attempt=self.attempt, ending=self._ending).model_dump_json(by_alias=True, exclude_none=True)


@dataclass
class _Call:
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
        self._calls: list[_Call] = []
        self._listener = socket.create_server(("", number), backlog=64)
        self.number: int = self._listener.getsockname()[1]
        self._wake_for(self._listener)

    def close(self) -> None:
        """Close whatever is open."""
        for call in self._calls:
            call.connection.close()
        self._listener.close()

    def attend(self, answer: Callable[[str, str, bool], Answer]) -> None:
        """Answer what has been asked since the last time, given method, path, and whether the caller is trusted."""
        self._accept()
        for call in list(self._calls):
            if self._hear(call):
                code, text = answer(*self._understand(call.said))
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
            self._wake_for(connection)
            self._calls.append(_Call(connection, time.monotonic() + _CALL_SECONDS))

    def _hear(self, call: _Call) -> bool:
        """Whether a caller has said all."""
        try:
            while more := call.connection.recv(_LONGEST_CALL):
                call.said += more
                if len(call.said) > _LONGEST_CALL:
                    break
            call.until = 0.0  # no more will come, or too much has
        except BlockingIOError:
            pass
        except OSError:
            call.until = 0.0
        return b"\r\n\r\n" in call.said

    def _understand(self, said: bytes) -> tuple[str, str, bool]:
        head, *lines = said.partition(b"\r\n\r\n")[0].split(b"\r\n")
        method, path, *_ = [*head.split(b" "), b"", b""]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        trusted = hmac.compare_digest(given, self._token)
        return method.decode("ascii", "replace"), path.decode("ascii", "replace"), trusted

    def _wake_for(self, connection: socket.socket) -> None:
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
