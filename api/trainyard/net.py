"""Network helpers."""

import contextlib
import secrets
import socket
from typing import Final

_PORTS: Final = range(16_384, 30_000)
"""Ports that are neither the system's own choice nor those of NodePorts of Kubernetes."""
_TRIES: Final = 100


def any_address() -> str:
    """Return the address to listen on for connections to all addresses of this machine or pod, IPv4 and IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of this machine that no process listens on at the moment.

    It is none of those that the system gives to outgoing connections, and to servers that ask for any port (from 32768
    on with Linux), so such cannot take it before the caller does. A server that asks for this very port can: the caller
    has to handle that, or to accept the risk.
    """
    for _ in range(_TRIES):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        given: int = probe.getsockname()[1]
        return given
