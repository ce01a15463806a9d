"""Ports of this machine."""

import socket
from pathlib import Path

import pytest

from trainyard import net


def test_a_free_port_is_none_that_the_system_gives_away() -> None:
    """Or an outgoing connection could take it before its server listens."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split())
    assert not any(first <= net.free_port() <= last for _ in range(100))


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(net, "_PORTS", range(port, port + 1))
        assert net.free_port() != port, "the system's choice, as a last resort"
    assert net.free_port() == port
