"""HTTP requests in the cluster's network, all made by one process that stays there."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster import Cluster

# Reads one URL a line and answers each with one line of JSON: {"status": ..., "body": ...} or {"error": ...}.
_PROGRAM = """
import json, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for url in sys.stdin:
    try:
        with opener.open(url.strip(), timeout=5) as response:
            answer = {"status": response.status, "body": response.read().decode()}
    except (OSError, urllib.error.URLError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class FetchError(Exception):
    """A server did not answer, or answered with an error."""


@dataclass(frozen=True)
class Fetcher:
    """The process in the cluster's network; threads take turns."""

    process: subprocess.Popen[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, url: str) -> str:
        """Return the body of a page; raise FetchError unless the server answers with success."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(f"{url}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            raise FetchError(f"{url}: the process that asks has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FetchError(f"{url}: {answer['error']}")
        return str(answer["body"])

    def get_json(self, url: str) -> Any:
        """Return a page of JSON."""
        return json.loads(self.get(url))

    def answers(self, url: str) -> bool:
        """Return whether a server answers with success."""
        try:
            self.get(url)
        except FetchError:
            return False
        return True


@contextmanager
def fetcher_in(cluster: Cluster) -> Iterator[Fetcher]:
    """Run such a process in the network of a cluster while the context lasts."""
    command = [*cluster.command_prefix, sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Fetcher(process)
        finally:
            process.terminate()
