"""How tests use the cluster: kubectl in its network, waits with deadlines, and recorded states of objects."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from tests.cluster import Cluster

T = TypeVar("T")
Body = dict[str, Any]

# Run in a worker: the processes that torchrun has started, by parent.
KILL_A_RANK = """
import os
for entry in os.listdir('/proc'):
    if entry.isdigit() and open(f'/proc/{entry}/stat').read().rsplit(') ', 1)[1].split()[1] == '1':
        if 'trainyard_trainer' in open(f'/proc/{entry}/cmdline').read():
            os.kill(int(entry), 9)
            print(entry)
            break
"""


BUSY = 2
"""Factor of all waits: they are chosen for the tests alone, but others compute beside them, and processors differ."""


def eventually(what: str, probe: Callable[[], T | None], timeout: float = 60, interval: float = 0.3) -> T:
    """Wait until `probe` returns something true, and return it; fail with the last answer in the end.

    `timeout`: seconds that suffice on an idle machine; twice as many may pass.
    """
    timeout *= BUSY
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:.0f} s; last seen: {found!r}")
        time.sleep(interval)


@dataclass(slots=True)
class Seen:
    """One state of one object, and when it was received (Unix time, seconds)."""

    at: float
    type: str
    body: Body


@dataclass
class Record:
    """Every state of the objects of one kind in a namespace, from a watch."""

    seen: list[Seen] = field(default_factory=list)

    def when(self, test: Callable[[Body], bool]) -> float | None:
        """Return when an object first passed the test; None if none has."""
        return next((s.at for s in list(self.seen) if s.type != "DELETED" and test(s.body)), None)

    def read(self, stream: Any) -> None:
        """Read a stream of watch events, as kubectl prints them."""
        decoder, buffer = json.JSONDecoder(), ""
        while chunk := os.read(stream.fileno(), 1 << 16):
            buffer += chunk.decode()
            while buffer.lstrip():
                try:
                    event, end = decoder.raw_decode(buffer.lstrip())
                except ValueError:
                    break
                buffer = buffer.lstrip()[end:]
                self.seen.append(Seen(time.time(), event["type"], event["object"]))


@dataclass(frozen=True)
class Namespace:
    """A namespace of the cluster, and kubectl in it."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True, timeout: float = 60) -> str:
        """Run kubectl in the namespace and return what it printed (both streams if it may fail)."""
        argv = [str(self.cluster.kubectl), "-n", self.name, *arguments]
        done = self.cluster.run(argv, input=input, check=check, timeout=timeout)
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, *bodies: Body) -> None:
        """Apply objects as a user would."""
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(bodies))

    def get(self, kind: str, name: str) -> Body:
        """Return one object."""
        body: Body = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return body

    def objects(self, kind: str, selector: str = "") -> list[Body]:
        """Return all objects of a kind."""
        items: list[Body] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return items

    def status(self, job: str) -> Body:
        """Return the status of a job; an empty mapping before the first one."""
        status: Body = self.get("tj", job).get("status", {})
        return status

    def condition(self, job: str, kind: str) -> Body:
        """Return a condition of a job; an empty mapping if it was never set."""
        return next((c for c in self.status(job).get("conditions", ()) if c["type"] == kind), {})

    def await_phase(self, job: str, phase: str, timeout: float = 120) -> Body:
        """Wait for a phase; return the status."""

        def probe() -> Body | None:
            status = self.status(job)
            ended = status.get("phase") in ("Succeeded", "Failed") and status["phase"] != phase
            assert not ended, f"{job} is {status['phase']}, not {phase}: {json.dumps(status, indent=1)}"
            return status if status.get("phase") == phase else None

        return eventually(f"{job} {phase}", probe, timeout)

    def await_step(self, job: str, step: int, *, attempt: int = 1, timeout: float = 120) -> Body:
        """Wait until the status shows a step of an attempt; return the progress."""

        def probe() -> Body | None:
            progress: Body = self.status(job).get("progress") or {}
            reached = progress.get("attempt") == attempt and progress.get("step", 0) >= step
            return progress if reached else None

        return eventually(f"{job} at step {step} of attempt {attempt}", probe, timeout)

    def events(self, job: str) -> list[tuple[str, str]]:
        """Return reason and message of the events of a job."""
        events = self.objects("events")
        return [(e["reason"], e["message"]) for e in events if e["involvedObject"]["name"] == job]

    @contextmanager
    def record(self, kind: str) -> Iterator[Record]:
        """Record every state of the objects of a kind while the context lasts."""
        argv = [
            self.cluster.kubectl,
            "-n",
            self.name,
            "get",
            kind,
            "--watch",
            "--output-watch-events",
            "-o",
            "json",
        ]
        command = [*self.cluster.command_prefix, *map(str, argv)]
        record = Record()
        with subprocess.Popen(command, env=self.cluster.environment, stdout=subprocess.PIPE) as watch:
            reader = threading.Thread(target=record.read, args=(watch.stdout,))
            reader.start()
            try:
                yield record
            finally:
                watch.terminate()
                reader.join()


def is_ready(pod: Body) -> bool:
    """Return whether the readiness probe of a pod has succeeded last; a new pod has no conditions yet."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


@dataclass(frozen=True)
class OperatorPod:
    """The operator that the chart has installed."""

    namespace: Namespace

    def names(self) -> list[str]:
        """Return the names of the ready pods."""
        pods = self.namespace.objects("pods", "app.kubernetes.io/name=trainyard-operator")
        return [p["metadata"]["name"] for p in pods if is_ready(p) and "deletionTimestamp" not in p["metadata"]]

    def scale(self, replicas: int) -> int:
        """Set the number of replicas, and return the previous one."""
        before = int(self.namespace.get("deployment", "trainyard")["spec"]["replicas"])
        self.namespace.kubectl("scale", "deployment/trainyard", f"--replicas={replicas}")
        return before

    def replace(self) -> None:
        """Replace the pod with a new one, as an upgrade does."""
        self.namespace.kubectl("rollout", "restart", "deployment/trainyard")
        self.namespace.kubectl("rollout", "status", "deployment/trainyard", "--timeout=60s", timeout=70)

    def usurp(self) -> None:
        """Give the lease for an hour to a holder that does not exist."""
        record = {"spec": {"holderIdentity": "nobody", "leaseDurationSeconds": 3600}}
        self.namespace.kubectl("patch", "lease", "trainyard", "--type=merge", "-p", json.dumps(record))

    def kill(self) -> None:
        """Kill the operator without warning, and wait for the next one."""
        before = self.names()
        self.namespace.kubectl("delete", "pod", *before, "--grace-period=0", "--force")
        eventually("a new operator", lambda: [n for n in self.names() if n not in before])


def print_evidence(namespace: Namespace, operator_pod: OperatorPod) -> None:
    """Print jobs, pods, events and logs."""
    print(namespace.kubectl("get", "tj,pods", "-o", "wide", check=False))
    print(namespace.kubectl("describe", "tj", check=False))
    print(namespace.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False))
    print(namespace.kubectl("logs", "-l", "trainyard.dev/job-name", "--prefix", "--tail=20", check=False))
    for name in operator_pod.names():
        print(operator_pod.namespace.kubectl("logs", name, "--tail=50", check=False))


def trainer_job(name: str, *, steps: int, replicas: int = 2, **spec: Any) -> Body:
    """Return a small job of the built-in trainer: it starts fast, and a step takes a few hundredths of a second."""
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            # A share of the processor: pods without a request starve beside other processes of the machine.
            "workers": {"replicas": replicas, "resources": {"requests": {"cpu": "300m"}}, **spec.pop("workers", {})},
            # Pods of one node that each have a thread per processor wait for each other.
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, *spec.pop("env", ())],
            "trainer": {
                "model": {"name": "llama", "preset": "nano", "layers": 2},
                "data": {"source": "text", "builtin": "python-stdlib", "sequenceLength": 64},
                "batch": {"global": 8},
                "stop": {"steps": steps},
                "logEverySteps": 5,
                **spec.pop("trainer", {}),
            },
            **spec,
        },
    }
