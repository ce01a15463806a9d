"""Network helpers."""

import socket


def any_address() -> str:
    """Return the address to listen on for connections to all addresses of this machine or pod, IPv4 and IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of this machine that no process listens on at the moment.

    Another process may take it before the caller does: the caller has to handle that, or to accept the risk.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
