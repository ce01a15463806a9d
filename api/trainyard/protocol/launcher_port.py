"""HTTP port of the launcher: a server that never blocks, for a process with a single thread.

Mounted into images of users together with `launcher.py`: standard library of Python 3.8 only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Tuple

_REQUEST_TIMEOUT_SECONDS = 2.0
"""Time within which a client must send its request."""
_MAX_REQUEST_BYTES = 8192
"""Largest request that is read."""

# <fcntl.h>
_F_SETOWN_EX = 15
_F_OWNER_TID = 0

Response = Tuple[HTTPStatus, str]
"""Status and body of an HTTP response."""


@dataclass
class _Connection:
    """A connection whose request is not complete yet."""

    socket: socket.socket
    deadline: float
    """Time (`time.monotonic`) at which it is closed unless its request is complete."""
    received: bytes = field(default=b"")


class Port:
    """A small HTTP server that never blocks. Requests have no body, and each connection serves one request."""

    def __init__(self, token: str, number: int) -> None:
        """Listen on TCP port `number`; 0 chooses a free one. `token`: bearer token of trusted clients.

        Raises:
            OSError: the port is in use.
        """
        self._token = token.encode()
        self._connections: list[_Connection] = []
        self._listener = _listen(number)
        self.number: int = self._listener.getsockname()[1]
        signal_on_input(self._listener.fileno())

    def close(self) -> None:
        """Stop listening, and close all connections."""
        for connection in self._connections:
            connection.socket.close()
        self._listener.close()

    def poll(self, answer: Callable[[str, str, bool], Response]) -> None:
        """Respond to all requests that are complete, without blocking.

        `answer` returns the response, given the method, the path, and whether the client is trusted.
        """
        self._accept()
        for connection in list(self._connections):
            if self._receive(connection):
                code, text = answer(*self._parse(connection.received))
                _respond(connection.socket, code, text)
            # An incomplete request may continue until its deadline.
            elif time.monotonic() < connection.deadline:
                continue
            connection.socket.close()
            self._connections.remove(connection)

    def _accept(self) -> None:
        """Accept all pending connections."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # none is pending, or the client has closed it again
                return
            signal_on_input(client.fileno())
            self._connections.append(_Connection(client, time.monotonic() + _REQUEST_TIMEOUT_SECONDS))

    def _receive(self, connection: _Connection) -> bool:
        """Read what has arrived on a connection. Return whether its request is complete."""
        try:
            while more := connection.socket.recv(_MAX_REQUEST_BYTES):
                connection.received += more
                if len(connection.received) > _MAX_REQUEST_BYTES:
                    break
            connection.deadline = 0.0  # the client has closed its side, or the request is too long
        except BlockingIOError:
            pass
        except OSError:
            connection.deadline = 0.0
        return b"\r\n\r\n" in connection.received

    def _parse(self, request: bytes) -> tuple[str, str, bool]:
        """Return method and path of a request, and whether it has the token."""
        head, *lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
        method, path, *_ = [*head.split(b" "), b"", b""]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        token = headers.get(b"authorization", b"").replace(b"Bearer ", b"", 1)
        trusted = hmac.compare_digest(token, self._token)
        return method.decode("ascii", "replace"), path.decode("ascii", "replace"), trusted


def _listen(number: int) -> socket.socket:
    """Return a socket that listens on a port, for IPv4 and IPv6 where the pod has both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", number), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True)
    return socket.create_server(("", number), backlog=64)


def signal_on_input(descriptor: int) -> None:
    """Make a socket or pipe non-blocking, and let the kernel send SIGIO when it has input."""
    os.set_blocking(descriptor, False)
    # The signal goes to this thread, which blocks it. In any other thread it would end the process.
    owner = struct.pack("ii", _F_OWNER_TID, threading.get_native_id())
    fcntl.fcntl(descriptor, _F_SETOWN_EX, owner)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)


def _respond(connection: socket.socket, code: HTTPStatus, text: str) -> None:
    """Send an HTTP response."""
    kind = "application/json" if text.startswith("{") else "text/plain"
    head = f"HTTP/1.1 {code.value} {code.phrase}\r\nContent-Type: {kind}\r\n"
    body = text.encode()
    with contextlib.suppress(OSError):  # a client that has gone will ask again
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
