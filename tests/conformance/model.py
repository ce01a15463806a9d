"""What a conformance case is made of: a neutral description of a job, and steps that act or expect.

A case knows the Kubernetes API only. A `Mapping` says how an operator spells a job and its states, a `Backend` how pods
get theirs, so one table of cases runs against several operators, without a kubelet and on a real node.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tests.conformance.trial import Trial

Object = dict[str, Any]
Identity = tuple[int, int]
"""Attempt, from 1, and index, from 0, of a worker pod."""
Step = Callable[["Trial"], Awaitable[None]]
"""An action, or an expectation that waits until it holds and fails with an AssertionError at its deadline."""

OWN = frozenset({"own fields"})
"""Features of a case about fields, labels or conditions that only TrainingJob has."""


@dataclass(frozen=True)
class Job:
    """A job as any operator of groups of pods knows it; `spec` has fields that only a TrainingJob has."""

    workers: int = 2
    name: str = "job"
    restarts: int = 0
    """How many failures of the program are followed by another attempt."""
    suspended: bool = False
    ttl: int | None = None
    """Seconds after its end at which the job is deleted."""
    manager: str | None = None
    """Controller of the job, if it is another one."""
    program: bool = True
    """Whether it has the command of the backend; False: `spec` says what runs."""
    spec: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One claim, which its name states: given a job, when something happens, then this is seen."""

    name: str
    job: Job | None
    steps: tuple[Step, ...]
    given: tuple[Step, ...] = ()
    """Steps before the job is created."""
    starts: bool = True
    """Whether pods get a node and run by themselves; otherwise steps let them."""
    terminates: bool = True
    """Whether pods whose deletion was requested end by themselves."""
    node: bool = False
    """Whether the case runs on a real node, too: it leaves the states of pods to a kubelet."""
    needs: frozenset[str] = OWN
    """Features that the operator under test must have."""


def case(name: str, job: Job | None, *steps: Step, needs: str = "", **fields: Any) -> Case:
    """Return a case; `needs` are its features, separated by commas, and without it those of a TrainingJob alone."""
    features = frozenset(filter(None, needs.split(","))) if needs else OWN
    return Case(name, job, steps, needs=features, **fields)


class Mapping(Protocol):
    """How an operator spells a job, and says what becomes of it."""

    name: str
    features: frozenset[str]
    """Features that cases may need: words such as suspend, ttl or restart."""
    api: str
    """Path of the API group and version."""
    plural: str

    def manifest(self, job: Job, backend: Backend) -> Object:
        """Return what a user applies."""
        ...

    def identity(self, pod: Object) -> Identity | None:
        """Return which worker a pod is; None if it is none."""
        ...

    def state(self, job: Object) -> str:
        """Return Pending, Running, Restarting, Suspending, Suspended, Succeeded or Failed."""
        ...

    def restarts(self, job: Object) -> int:
        """Return how many restarts have been counted."""
        ...

    def suspend(self, value: bool) -> Object:
        """Return the merge patch that suspends or resumes a job."""
        ...

    def environment(self, index: int, workers: int) -> Object:
        """Return the variables of the rendezvous that the program of a worker needs, for the first attempt."""
        ...


class Backend(Protocol):
    """What gives pods their states."""

    image: str
    command: Sequence[str]
    """Program of the workers. It runs until it is told how to end, and ends at once by SIGTERM."""
    resources: Object
    """Resources of each worker."""
    patience: float
    """Seconds within which an expectation has to hold: all cases share the processors."""

    def attached(self, trial: Trial) -> AbstractAsyncContextManager[None]:
        """Care for the pods of a case while the context lasts."""
        ...

    async def end(self, trial: Trial, pod: Object, code: int, message: str) -> None:
        """Let the program of a pod end with an exit code; `message` is what it writes last."""
        ...

    async def environment(self, trial: Trial, pod: Object) -> Object:
        """Return the environment variables of the program of a pod."""
        ...


def selected_mapping() -> Mapping:
    """Return the mapping that TRAINYARD_CONFORMANCE_MAPPING names: trainyard, the default, or jobset."""
    from tests.conformance.jobset import JobSetMapping
    from tests.conformance.trainyard import TrainyardMapping

    mappings: dict[str, Mapping] = {"trainyard": TrainyardMapping(), "jobset": JobSetMapping()}
    return mappings[os.environ.get("TRAINYARD_CONFORMANCE_MAPPING", "trainyard")]
