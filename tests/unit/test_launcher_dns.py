"""The launcher waits for the address of worker 0 without a look-up that a DNS server would remember as too early."""

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainyard.protocol import launcher, launcher_dns
from trainyard.protocol.launcher import Launcher

NAME = "job-1-0.job.default.svc"
FULL_NAME = f"{NAME}.cluster.local"
SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local example.com"
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME, REFUSED = 0, 2, 3, 5
ADDRESS = 1  # the type A


class DnsServer:
    """Answers as CoreDNS with its cache: that a name does not exist is remembered for each type that was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.failure: int | None = None
        self.asked: list[tuple[str, int]] = []
        self._missing: set[tuple[str, int]] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def code(self, name: str, kind: int) -> int:
        """The answer to a question, which is remembered if it is that the name does not exist."""
        self.asked.append((name, kind))
        if (name, kind) not in self._missing and name in self.names:
            return NO_ERROR
        self._missing.add((name, kind))
        return NO_SUCH_NAME

    def close(self) -> None:
        # An empty datagram ends the thread.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            request, client = self._socket.recvfrom(512)
            if not request:
                return
            labels, at = [], 12
            while length := request[at]:
                labels.append(request[at + 1 : at + 1 + length].decode())
                at += 1 + length
            kind, of_class = struct.unpack("!HH", request[at + 1 : at + 5])
            assert (request[2:12], of_class) == (struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0), 1)
            code = self.code(".".join(labels), kind) if self.failure is None else self.failure
            self._socket.sendto(request[:2] + struct.pack("!H", 0x8180 | code) + request[4:], client)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsServer]:
    """The DNS server of the pod, which addresses are looked up at, too."""
    server = DnsServer()
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(f"# of the kubelet\nnameserver 127.0.0.1\nsearch {SEARCH}\noptions ndots:5\n")
    monkeypatch.setattr(launcher_dns, "RESOLV_CONF", resolv_conf)
    monkeypatch.setattr(launcher_dns, "_PORT", server.port)

    def look_up(name: str, *_: object, **__: object) -> list[object]:
        if server.code(f"{name.removesuffix('.cluster.local')}.cluster.local", ADDRESS) != NO_ERROR:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield server
    server.close()


@pytest.mark.parametrize("name", [NAME, FULL_NAME])
def test_a_name_is_looked_up_only_when_it_exists(server: DnsServer, name: str) -> None:
    assert not launcher_dns.can_look_up(name)
    server.names.add(FULL_NAME)
    deadline = time.monotonic() + 5
    while not launcher_dns.can_look_up(name):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    early = [kind for _, kind in server.asked[:-1]]
    assert ADDRESS not in early, "the server would remember that it had no address"
    assert all(65280 <= kind < 65534 for kind in early), "types for private use"
    assert server.asked[-1] == (FULL_NAME, ADDRESS)


def test_the_names_of_the_pod_itself_need_no_server(
    server: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"# of the kubelet\n127.0.0.1\tlocalhost\n10.0.0.7\t{FULL_NAME}\tjob-1-0\n")
    monkeypatch.setattr(launcher_dns, "HOSTS", hosts)
    assert launcher_dns.can_look_up(FULL_NAME)
    assert server.asked == []
    hosts.unlink()
    assert not launcher_dns.can_look_up(FULL_NAME)


def test_the_domain_of_the_cluster_is_that_of_its_services(server: DnsServer) -> None:
    assert launcher_dns.cluster_domain() == "cluster.local"
    launcher_dns.RESOLV_CONF.unlink()
    assert launcher_dns.cluster_domain() == "", "this is no pod"
    assert server.asked == []


def test_pods_that_ask_at_the_same_time_ask_the_same(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the server answers thousands of them from its cache."""
    for moment in (1000.0, 1000.2, 1000.3, 1063.6):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        launcher_dns.can_look_up(NAME)
    kinds = [kind for _, kind in server.asked]
    assert kinds[0] == kinds[1] == kinds[3], "and again only after a minute, when the answer is forgotten"
    assert kinds[2] == kinds[0] + 1


@pytest.mark.parametrize("failure", [SERVER_FAILURE, REFUSED, 4])
def test_a_server_that_does_not_know_such_types_is_asked_for_the_address(server: DnsServer, failure: int) -> None:
    server.names.add(FULL_NAME)
    server.failure = failure
    assert launcher_dns.can_look_up(NAME)


@pytest.mark.parametrize("text", ["", "nameserver 127.0.0.1\nsearch example.com", "search svc.a a", "nameserver"])
def test_without_a_domain_of_a_cluster_the_address_is_looked_up(server: DnsServer, text: str) -> None:
    launcher_dns.RESOLV_CONF.write_text(text)
    server.names.add(FULL_NAME)
    assert launcher_dns.can_look_up(NAME)
    assert server.asked == [(FULL_NAME, ADDRESS)]


def test_addresses_and_names_outside_of_the_cluster_are_not_asked_about(server: DnsServer) -> None:
    for address in ("10.0.0.7", "fd00::7", "127.0.0.1"):
        assert launcher_dns.can_look_up(address)
    assert server.asked == []
    assert not launcher_dns.can_look_up("job-1-0")
    assert server.asked == [("job-1-0.cluster.local", ADDRESS)]


def test_the_launcher_waits_until_the_address_is_there(server: DnsServer) -> None:
    timer = threading.Timer(0.6, server.names.add, [FULL_NAME])
    timer.start()
    began = time.monotonic()
    assert Launcher(1).await_address(NAME) is None
    assert 0.5 < time.monotonic() - began < 10
    timer.join()


@pytest.mark.usefixtures("server")
def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "ADDRESS_SECONDS", 0.3)
    assert Launcher(1).await_address(NAME) is None


def test_a_program_that_waits_for_the_address_has_not_begun_and_ends_on_sigterm(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    environment = {"PATH": "/usr/bin:/bin", "MASTER_ADDR": "no-such-name.invalid"}
    command = [sys.executable, launcher.__file__, "touch", str(begun)]
    process = subprocess.Popen(command, env=environment)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not begun.exists()
