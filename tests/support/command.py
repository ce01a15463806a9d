"""`trainyard` as a process: with its streams read, or in a terminal."""

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import yaml

from tests.builders import make_manifest, trainer_spec
from tests.support.kube import Object

PROGRAM = [sys.executable, "-m", "trainyard_cli.main"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What went wrong, in one line."""
        assert "Traceback" not in self.err, self.err
        (line,) = self.err.splitlines()
        return line.removeprefix("error: ")


_NURSERY = """
import json, os, signal, socket, sys
from kubernetes import config
from kubernetes.client import CoreV1Api, CustomObjectsApi
from trainyard_cli.main import main
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    caller, _ = listener.accept()
    if os.fork() == 0:  # waits for the command, and tells how it ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asked, streams, _, _ = socket.recv_fds(caller, 1 << 18, 3)
        if (pid := os.fork()) == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            asked = json.loads(asked)
            os.environ.clear()
            os.environ.update(asked["env"])
            sys.argv = ["trainyard", *asked["arguments"]]
            sys.exit(main())
        caller.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    caller.close()
"""


class Nursery:
    """Starts commands in milliseconds: a process that has imported everything forks each of them."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "nursery"
        command = [sys.executable, "-c", _NURSERY, str(self._socket)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def run(self, arguments: Sequence[str], env: dict[str, str], streams: Sequence[IO[bytes]]) -> int:
        """Run one command with these standard streams, and return its exit code."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.settimeout(60)
            server.connect(str(self._socket))
            asked = json.dumps({"arguments": arguments, "env": env}).encode()
            socket.send_fds(server, [asked], [stream.fileno() for stream in streams])
            return int(server.recv(64))

    def close(self) -> None:
        """End it, and all commands that still run."""
        with self._process:
            os.killpg(self._process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Command:
    """The program, in the namespace of a test."""

    nursery: Nursery
    kubeconfig: Path
    namespace: str

    @property
    def env(self) -> dict[str, str]:
        """The environment that it runs in."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    async def __call__(self, *arguments: str, stdin: str = "", stderr: Path | None = None, **env: str) -> Done:
        """`stderr`: where standard error goes, to be read before the end; else it is in what is returned."""
        env = {**self.env, "COLUMNS": "200", **env}
        with TemporaryFile() as given, TemporaryFile() as out, stderr.open("w+b") if stderr else TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            code = await asyncio.to_thread(self.nursery.run, arguments, env, (given, out, err))
            out.seek(0)
            err.seek(0)
            return Done(code, out.read().decode(), err.read().decode())


def kubeconfig_for(kubeconfig: Path, namespace: str, folder: Path) -> Path:
    """A kubeconfig whose context names the namespace, as `kubectl config set-context` leaves it, and one more."""
    config = yaml.safe_load(kubeconfig.read_text())
    (context,) = config["contexts"]
    context["context"]["namespace"] = namespace
    config["contexts"].append({"name": "elsewhere", "context": {**context["context"], "namespace": "default"}})
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


def manifest(**spec: Any) -> str:
    return yaml.safe_dump(without_namespace(make_manifest(trainer=trainer_spec(), **spec)))


def without_namespace(body: Object) -> Object:
    del body["metadata"]["namespace"]
    return body


class Terminal:
    """A terminal that a program runs in."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.mine, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 160))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        # Ctrl-C is for the terminal's own session.
        command = ["setsid", "--ctty", *command]
        self.process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        self.shown = ""

    async def shows(self, text: str, times: int = 1) -> None:
        """Wait until a text has been drawn so often."""
        async with asyncio.timeout(60):
            while self.shown.count(text) < times:
                ready, _, _ = await asyncio.to_thread(select.select, [self.mine], [], [], 1)
                if ready:
                    self.shown += os.read(self.mine, 65536).decode("utf-8", "replace")

    def press(self, key: str) -> None:
        os.write(self.mine, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.mine)
        os.close(self.theirs)
