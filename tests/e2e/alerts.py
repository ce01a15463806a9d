"""Faults of jobs that must become alerts: what causes each, which alerts Alertmanager must receive, what repairs it."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.e2e.faults.fault_job import RunningJob, make_job
from tests.e2e.faults.table import FIND_UPDATES, SPOIL_GRADIENTS
from tests.e2e.namespace import Body, Namespace, eventually, is_ready
from tests.e2e.node_faults import NodeFaults
from tests.e2e.prometheus import PACE, Prometheus
from tests.support.alerting import flaws
from trainyard_monitoring.timing import NONFINITE_STEPS, RESTARTS

STEP_SECONDS = 0.5
"""Seconds that each step sleeps: a dozen ranks on two processors, which other tests use as well, compute for much less
of their time, or a busy machine would be a true alert about throughput."""
EVERY = 8
"""Steps from one checkpoint to the next."""
CALM_STEPS = 3 * EVERY
"""Steps without a fault at first: the usual interval between checkpoints is known once there are two, and some losses
are."""
PATIENCE = 150.0
"""Seconds within which an alert must fire, or resolve; no rule needs half of that."""

Labels = frozenset[tuple[str, str]]
Times = dict[Labels, tuple[float, float]]
"""By alert: seconds from the fault until the alert was active, and from the repair until it was resolved."""


def labels(alert: str, **others: str) -> Labels:
    """Return the labels that identify an alert."""
    return frozenset({"alertname": alert, **others}.items())


@dataclass
class Watch:
    """The alerts that an Alertmanager has received about some namespaces, and when."""

    prometheus: Prometheus
    namespaces: frozenset[str]
    active: frozenset[Labels] = frozenset()
    since: dict[Labels, float] = field(default_factory=dict)
    """When each alert was first seen (time.monotonic)."""
    flaws: set[str] = field(default_factory=set)
    """Errors in the texts of alerts."""
    steps: dict[str, float] = field(default_factory=dict)
    """Steps that each job has made, as the rules know them."""

    def look(self) -> None:
        """Read the active alerts and the steps of the jobs."""
        active = set()
        for alert in self.prometheus.active():
            told: dict[str, str] = {key: text for key, text in alert["labels"].items() if key != "severity"}
            if told.get("namespace") in {*self.namespaces, None}:
                active.add(frozenset(told.items()))
                self.flaws.update(flaws(alert))
        for one in active - self.since.keys():
            self.since[one] = time.monotonic()
        self.active = frozenset(active)
        found = self.prometheus.query("job:trainyard_steps:max")
        self.steps = {told["job_name"]: steps for told, steps in found if told["namespace"] in self.namespaces}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Read them every half second, in a thread, while the context lasts."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.5):
                self.look()

        with ThreadPoolExecutor(1) as executor:
            looking = executor.submit(look)
            try:
                yield
            finally:
                stop.set()
            looking.result()

    def see(self, alerts: frozenset[Labels], harm: Callable[[], object], mend: Callable[[], object]) -> Times:
        """Cause a fault, wait for these alerts, repair it, and wait until all of them are resolved."""
        assert not alerts & self.since.keys(), "before anything was wrong"
        told, began = str([dict(alert) for alert in alerts]), time.monotonic()
        harm()
        eventually(told, lambda: alerts <= self.active, PATIENCE)
        mended = time.monotonic()
        mend()
        ends: dict[Labels, float] = {}

        def resolved() -> bool:
            for alert in alerts - self.active - ends.keys():
                ends[alert] = time.monotonic()
            return alerts == ends.keys()

        eventually(f"resolved: {told}", resolved, PATIENCE)
        return {alert: (self.since[alert] - began, ends[alert] - mended) for alert in alerts}


@dataclass(frozen=True)
class Trouble:
    """A fault of one job, and the alerts that it must become."""

    job: str
    alerts: Mapping[str, Mapping[str, str]]
    """The alerts that must fire, and no other, by name; with labels besides those of the job."""
    harm: Callable[[RunningJob], None]
    mend: Callable[[RunningJob], object]
    calm: float | None = 0
    """Seconds between the first `CALM_STEPS` and the harm; None: it never makes a step."""
    spec: Body = field(default_factory=dict)
    """Fields of the job's spec besides the defaults."""
    size: str | None = None
    """Size of its volume; None: as large as the disk."""

    def expected(self, namespace: str) -> frozenset[Labels]:
        """Return the labels of the expected alerts as Alertmanager has them."""
        where = {"namespace": namespace, "job_name": self.job}
        return frozenset(labels(name, **where, **others) for name, others in self.alerts.items())


def one_worker(**resources: str) -> Body:
    """Return workers of one rank that request little."""
    return {"replicas": 1, "resources": {"requests": {"cpu": "100m", **resources}}}


@contextmanager
def running(
    namespace: Namespace,
    node_faults: NodeFaults,
    name: str,
    spec: Body,
    size: str | None = None,
    pace: float = STEP_SECONDS,
) -> Iterator[RunningJob]:
    """Run a job; it is deleted at the end of the context."""
    volume = node_faults.volume(namespace, name)
    if size is not None:
        volume.limit(size)
    checkpoint = {"everySteps": EVERY, "volume": {"hostPath": {"path": str(volume.path)}}}
    spec = {"workers": one_worker(), "trainer": {"batch": {"global": 2}}, **spec}
    namespace.apply(make_job(name, checkpoint, steps=1_000_000, pace=pace, **spec))
    try:
        yield RunningJob(namespace, node_faults, name, volume)
    finally:
        # Its pods go first: one that finds no volume at its end could not save, and that is an alert.
        namespace.kubectl("delete", "tj", name, "--ignore-not-found", "--cascade=foreground", timeout=PATIENCE)
        volume.remove()


def nothing(_: RunningJob) -> None:
    """Do nothing: the fault is in the spec, or passes by itself."""


_UPDATE = FIND_UPDATES + "[update] = updates\n"
_SPOIL_WEIGHTS = """
update.kept = [parameter.detach().clone() for parameter in update._parameters]
for parameter in update._parameters:
    parameter.data.mul_(10)
"""
_RESTORE_WEIGHTS = """
for parameter, kept in zip(update._parameters, update.kept, strict=True):
    parameter.data.copy_(kept)
"""
_PACE = "import os; os.environ['TRAINYARD_TEST_STEP_SECONDS'] = '{}'"


def fill_until_a_save_fails(job: RunningJob) -> None:
    """Fill the volume again and again: a save that is under way frees the space of the oldest checkpoint."""

    def saves_fail() -> bool:
        job.volume.fill()
        return "checkpointFailures" in job.namespace.status(job.name).get("progress", {})

    eventually(f"a failed save of {job.name}", saves_fail, PATIENCE)


def kill_again_and_again(job: RunningJob) -> None:
    """Kill a rank of each attempt after its first step, so that the next attempt begins in the same pod."""
    for attempt in range(1, RESTARTS + 1):
        job.namespace.await_step(job.name, 1, attempt=attempt)
        # The operator notices the end of an attempt in place as a change from ready to not ready.
        eventually(f"{job.name} is ready", lambda: is_ready(job.pod(0)))
        job.node_faults.signal(job.node_faults.ranks(job.pod(0))[0])


def patch(job: RunningJob, spec: Body) -> None:
    job.namespace.kubectl("patch", "tj", job.name, "--type=merge", "-p", json.dumps({"spec": spec}))


def suspend(job: RunningJob) -> None:
    patch(job, {"suspend": True})


def ask_for_less(job: RunningJob) -> None:
    """Lower the requests of a job while it is suspended, when its spec can be changed."""
    suspend(job)
    job.namespace.await_phase(job.name, "Suspended")
    patch(job, {"workers": one_worker(), "suspend": False})
    job.namespace.await_phase(job.name, "Running")


def ranks(job: RunningJob, number: signal.Signals) -> None:
    for rank in job.node_faults.ranks(job.pod(0)):
        job.node_faults.signal(rank, number)


STUCK, LEADERLESS, DOWN, ABSENT = OPERATOR = (
    "TrainyardOperatorQueueStuck",
    "TrainyardOperatorNoLeader",
    "TrainyardOperatorDown",
    "TrainyardOperatorAbsent",
)
"""Alerts about the operator rather than a job."""
DEFECTS = ("TrainyardOperatorPartFailing",)
"""Alerts about defects of the operator, which no fault of a node causes; tests/local/test_monitoring.py causes them."""

TABLE = (
    Trouble(
        "bad-numbers",
        {"TrainyardNonFiniteSteps": {}},
        lambda job: job.in_rank(0, SPOIL_GRADIENTS.format(steps=NONFINITE_STEPS)),
        nothing,
    ),
    Trouble(
        "diverging",
        {"TrainyardLossDiverging": {}},
        lambda job: job.in_rank(0, _UPDATE + _SPOIL_WEIGHTS),
        lambda job: job.in_rank(0, _UPDATE + _RESTORE_WEIGHTS),
    ),
    Trouble(
        "straggler",
        {"TrainyardStraggler": {"rank": "1"}},
        lambda job: job.node_faults.throttle(job.pod(1), 0.15),
        lambda job: job.node_faults.throttle(job.pod(1), None),
        spec={"workers": {**one_worker(), "replicas": 2}, "health": {"straggler": {"factor": 3}}},
    ),
    Trouble(
        "slower",
        {"TrainyardThroughputDropped": {}},
        lambda job: job.in_rank(0, _PACE.format(4 * STEP_SECONDS)),
        lambda job: job.in_rank(0, _PACE.format(STEP_SECONDS)),
        calm=PACE.slow_lag / 2,
    ),
    Trouble(
        "unsaved",
        {"TrainyardCheckpointFailing": {}, "TrainyardCheckpointStale": {}},  # nothing is written: the second follows
        fill_until_a_save_fails,
        lambda job: job.volume.free(),
        size="32m",
    ),
    Trouble(
        "stalled",
        {"TrainyardJobStalled": {}},
        lambda job: ranks(job, signal.SIGSTOP),
        lambda job: ranks(job, signal.SIGCONT),
        spec={"health": {"hangTimeoutSeconds": 3600}},  # or the launcher would end the attempt long before
    ),
    Trouble(
        "restarting",
        {"TrainyardRestartStorm": {}},
        kill_again_and_again,
        suspend,  # or it would be told until the last hour had fewer of them, which is two minutes here
        spec={"restartPolicy": {"maxRestarts": 10, "backoff": {"initialSeconds": 0}}},
    ),
    Trouble(
        "failing",
        {"TrainyardJobFailed": {}},
        lambda job: job.in_rank(0, "raise ValueError('a fault')"),
        lambda job: job.namespace.kubectl("delete", "tj", job.name),
        spec={"restartPolicy": {"maxRestarts": 0}},
    ),
    Trouble(
        "pending",
        {"TrainyardJobPendingTooLong": {}},
        nothing,  # it asks for more than there is from the start
        ask_for_less,
        calm=None,
        spec={"workers": one_worker(cpu="64")},
    ),
)
