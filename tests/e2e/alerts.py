"""Troubles of jobs that are to be alerts: what is done to a job, what Alertmanager must then be told, what mends it."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.e2e.faults.scene import Subject, make_job
from tests.e2e.faults.table import SPOIL_GRADIENT
from tests.e2e.node import Hands
from tests.e2e.prometheus import PACE, Prometheus
from tests.e2e.world import Body, World, eventually
from tests.support.alerting import flaws
from trainyard_monitoring.timing import NONFINITE_STEPS, RESTARTS

STEP_SECONDS = 0.25
"""Least time of a step: ten ranks share two processors, and none of them is to feel it."""
CALM = 10.0
"""Seconds in which all is well at first: two checkpoints, and some losses."""
PATIENCE = 150.0
"""Seconds within which an alert must fire, or resolve; no rule needs half of that."""

Labels = frozenset[tuple[str, str]]
Times = dict[Labels, tuple[float, float]]
"""By alert: seconds from the harm until it was told, and from the mending until it was not any more."""


def labels(alert: str, **others: str) -> Labels:
    """Those of an alert that tell it from others."""
    return frozenset({"alertname": alert, **others}.items())


@dataclass
class Watch:
    """What an Alertmanager has been told so far about some namespaces, and when."""

    prometheus: Prometheus
    namespaces: frozenset[str]
    active: frozenset[Labels] = frozenset()
    since: dict[Labels, float] = field(default_factory=dict)
    """When each alert was first seen (time.monotonic)."""
    flaws: set[str] = field(default_factory=set)
    """Words that are wrong."""
    steps: dict[str, float] = field(default_factory=dict)
    """Steps that each job has made, as the rules know them."""

    def look(self) -> None:
        """Look once more."""
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
        """Look again and again, in a thread, while the context lasts."""
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
        """Do harm, wait for all these alerts, mend it, and wait until none of them is left."""
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
    """What happens to one job."""

    job: str
    alerts: Mapping[str, Mapping[str, str]]
    """Those that it must be, and no other, by name; with labels besides those of the job."""
    harm: Callable[[Subject], None]
    mend: Callable[[Subject], object]
    calm: float | None = CALM
    """Seconds between the first step and the harm; None: it never makes a step."""
    spec: Body = field(default_factory=dict)
    """What the job's spec has besides."""
    size: str | None = None
    """Of its volume; None: the disk's."""

    def expected(self, namespace: str) -> frozenset[Labels]:
        """The same as Alertmanager has them."""
        where = {"namespace": namespace, "job_name": self.job}
        return frozenset(labels(name, **where, **others) for name, others in self.alerts.items())


def one_worker(**resources: str) -> Body:
    """A job of one rank, which asks for little."""
    return {"replicas": 1, "resources": {"requests": {"cpu": "100m", **resources}}}


@contextmanager
def running(world: World, hands: Hands, name: str, spec: Body, size: str | None = None) -> Iterator[Subject]:
    """A job that is gone in the end."""
    volume = hands.volume(world, name)
    if size is not None:
        volume.limit(size)
    checkpoint = {"volume": {"hostPath": {"path": str(volume.path)}}}
    spec = {"workers": one_worker(), "trainer": {"batch": {"global": 2}}, **spec}
    world.apply(make_job(name, checkpoint, steps=1_000_000, pace=STEP_SECONDS, **spec))
    try:
        yield Subject(world, hands, name, volume)
    finally:
        # Its pods go first: one that finds no volume at its end could not save, and that is an alert.
        world.kubectl("delete", "tj", name, "--ignore-not-found", "--cascade=foreground")
        volume.remove()


def nothing(_: Subject) -> None:
    """What is done and passes by itself, or has to be waited for."""


def spoil_gradients(job: Subject) -> None:
    for _ in range(NONFINITE_STEPS):
        job.in_rank(0, SPOIL_GRADIENT)
        eventually("the fault taken", lambda: not job.fault(0).exists(), interval=0.05)


_UPDATE = """
import gc
from trainyard_trainer.optim.update import LocalUpdate
[update] = [found for found in gc.get_objects() if isinstance(found, LocalUpdate)]
"""
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


def kill_again_and_again(job: Subject) -> None:
    """Each attempt makes a step first, so that the next one begins in the same pod."""
    for attempt in range(1, RESTARTS + 1):
        job.world.await_step(job.job, 1, attempt=attempt)
        job.hands.signal(job.hands.ranks(job.pod(0))[0])


def patch(job: Subject, spec: Body) -> None:
    job.world.kubectl("patch", "tj", job.job, "--type=merge", "-p", json.dumps({"spec": spec}))


def suspend(job: Subject) -> None:
    patch(job, {"suspend": True})


def ask_for_less(job: Subject) -> None:
    """The spec can be changed while the job is suspended."""
    suspend(job)
    job.world.await_phase(job.job, "Suspended")
    patch(job, {"workers": one_worker(), "suspend": False})
    job.world.await_phase(job.job, "Running")


def ranks(job: Subject, number: signal.Signals) -> None:
    for rank in job.hands.ranks(job.pod(0)):
        job.hands.signal(rank, number)


STUCK, LEADERLESS, DOWN, ABSENT = OPERATOR = (
    "TrainyardOperatorQueueStuck",
    "TrainyardOperatorNoLeader",
    "TrainyardOperatorDown",
    "TrainyardOperatorAbsent",
)
"""Alerts that are about no job."""

TABLE = (
    Trouble("bad-numbers", {"TrainyardNonFiniteSteps": {}}, spoil_gradients, nothing),
    Trouble(
        "diverging",
        {"TrainyardLossDiverging": {}},
        lambda job: job.in_rank(0, _UPDATE + _SPOIL_WEIGHTS),
        lambda job: job.in_rank(0, _UPDATE + _RESTORE_WEIGHTS),
    ),
    Trouble(
        "straggler",
        {"TrainyardStraggler": {"rank": "1"}},
        lambda job: job.hands.throttle(job.pod(1), 0.15),
        lambda job: job.hands.throttle(job.pod(1), None),
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
        lambda job: job.volume.fill(),
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
        calm=0,
        spec={"restartPolicy": {"maxRestarts": 10, "backoff": {"initialSeconds": 0}}},
    ),
    Trouble(
        "failing",
        {"TrainyardJobFailed": {}},
        lambda job: job.in_rank(0, "raise ValueError('a fault')"),
        lambda job: job.world.kubectl("delete", "tj", job.job),
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
