"""An object store with the interface of S3 on this machine: moto's server, and a proxy before it that can fail."""

import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainyard.net import free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build/object-store"
REQUIREMENTS = ("moto[server]==5.2.5",)
"""boto needs an older python-dateutil than the client of Kubernetes, so the server has an environment of its own."""
POLL_SECONDS = 0.1
"""Longest time until a connection notices that the store has gone down."""


@cache
def server_program() -> Path | None:
    """The server's program in its environment, which is made by uv if it is not there; None without uv or packages."""
    program = ENVIRONMENT / "bin/moto_server"
    uv = shutil.which("uv", path=f"{ROOT / '.uv/bin'}{os.pathsep}{os.environ['PATH']}")
    if program.exists() or uv is None:
        return program if program.exists() else None
    made = subprocess.run([uv, "venv", "-q", "--clear", ENVIRONMENT], check=False).returncode == 0
    install = [uv, "pip", "install", "-q", "--python", str(ENVIRONMENT / "bin/python"), *REQUIREMENTS]
    if made and subprocess.run(install, check=False).returncode == 0:
        return program
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    return None


@dataclass
class Proxy:
    """Passes connections on to a server, and can interrupt them."""

    server_port: int
    port: int = 0
    is_down: bool = False
    """Whether connections are closed as soon as they are accepted."""
    limit: int | None = None
    """Bytes in both directions after which the store goes down; None: never."""
    passed: int = 0
    """Bytes in both directions since `fail_after`."""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_after(self, count: int) -> None:
        """Let so many bytes pass from now on, then go down in the middle of a request."""
        self.passed, self.limit = 0, count

    def go_down(self) -> None:
        """Break all connections, and accept no others."""
        self.is_down = True

    def come_back(self) -> None:
        """Work again."""
        self.is_down, self.limit = False, None

    def close(self) -> None:
        """End."""
        self.go_down()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass bytes in both directions until one side ends, or the store goes down."""
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.server_port)) as server:
            while not self.is_down:
                for source in select.select([client, server], [], [], POLL_SECONDS)[0]:
                    content = source.recv(65536)
                    if not content:
                        return
                    (server if source is client else client).sendall(content)
                    self.passed += len(content)
                    if self.limit is not None and self.passed > self.limit:
                        self.go_down()
                        return


@dataclass
class ObjectStore:
    """A running store."""

    server_port: int
    proxy: Proxy
    secret: str
    """Secret key of a user who may do everything."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a program uses the store, through the proxy."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIATRAINYARDTESTS00",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
        }

    def make_bucket(self) -> str:
        """Create a bucket, and return its URL."""
        name = f"tests-{secrets.token_hex(4)}"
        self.request("PUT", name)
        return f"s3://{name}"

    def request(self, method: str, path: str, content: bytes | None = None, service: str = "s3") -> bytes:
        """Send a request to the server without the proxy, which accepts it while it demands no credentials."""
        url = f"http://127.0.0.1:{self.server_port}/{path}"
        scope = f"AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request"
        kind = "application/x-www-form-urlencoded" if service == "iam" else "application/octet-stream"
        headers = {"Authorization": scope, "Content-Type": kind}
        request = urllib.request.Request(url, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    @contextmanager
    def demanding_credentials(self) -> Iterator[tuple[str, str]]:
        """Check credentials and permissions of every request; yield the keys of a user who is permitted nothing."""
        user = f"Version=2010-05-08&UserName=user-{secrets.token_hex(4)}"
        self.request("POST", "", f"Action=CreateUser&{user}".encode(), "iam")
        answer = self.request("POST", "", f"Action=CreateAccessKey&{user}".encode(), "iam").decode()
        keys = [re.findall(f"<{name}>([^<]+)<", answer)[0] for name in ("AccessKeyId", "SecretAccessKey")]
        self.request("POST", "moto-api/reset-auth", b"0")
        try:
            yield keys[0], keys[1]
        finally:
            self.request("POST", "moto-api/reset-auth", b"inf")


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start a store, and end it."""
    program, port = server_program(), free_port()
    assert program is not None
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        proxy = Proxy(port)
        try:
            _wait_for(port, server)
            yield ObjectStore(port, proxy, secrets.token_hex(20))
        finally:
            proxy.close()
            server.kill()


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server does not listen"
        time.sleep(0.1)
