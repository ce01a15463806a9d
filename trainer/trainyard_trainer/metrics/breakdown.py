"""How much of a step is computation, how much communication, and how much of that is hidden behind computation.

Collectives run beside the computation, on threads of gloo or streams of NCCL, so no clock around a part of the loop can
tell how long a step waits for them. torch's profiler can, at a price. So now and then one step of rank 0 is traced and
summed up; the next one is due when the price of the last is 0.05 % of the time that has passed. The parts are those of
Holistic Trace Analysis (its temporal breakdown).
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from trainyard.protocol import constants
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.profiling import Profiler
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError

PARTS = ("compute", "overlap", "communication", "other")
"""compute: computation alone. overlap: computation, and communication beside it. communication: that alone, and the
waiting for other ranks in it. other: neither; data, Python, launches."""
BUDGET = 0.0005
"""Share of the time that samples may cost."""
FIRST = 5.0
"""Seconds of training before the first sample: neither allocators nor compilers are at work any more."""

COMPUTES = ("aten::", "## Call CompiledFxGraph")
WAITS = ("c10d::", "_c10d_functional::", "autograd::", "torch::autograd::", "FSDP::")
"""Operators that start collectives or wait for them, and marks around parts of the program."""

Interval = tuple[float, float]


class Breakdown(Observer):
    """Samples steps of this rank."""

    def __init__(
        self,
        tell: Callable[[dict[str, float]], None],
        device: torch.device,
        profiler: Profiler | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`tell` is told the seconds of each part of a step. Of two traces at a time, `profiler`'s is the one.

        Raises:
            ConfigError: TRAINYARD_STEP_SAMPLES is neither on nor off.
        """
        self._tell = tell
        self._on_gpu = device.type == "cuda"
        self._profiler = profiler
        self._clock = clock
        self._due = clock() + FIRST if _wanted() else inf
        self._usual = self._began = self._price = 0.0
        self._running: profile | None = None

    def before_step(self, step: int) -> None:
        """A step is about to begin. It is sampled if one is due."""
        self._began = self._clock()
        if self._began >= self._due and not (self._profiler is not None and self._profiler.is_tracing):
            self._start()

    def _start(self) -> None:
        asked = self._began
        # On a GPU kernels alone: to trace operators, too, would slow down the host, which launches them.
        self._running = profile(activities=[ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU])
        self._wait_for_device()
        self._running.start()
        self._began = self._clock()
        self._price = self._began - asked

    def after_step(self, step: int) -> None:
        """It is done."""
        if self._running is None:
            self._usual = self._clock() - self._began
            return
        self._wait_for_device()
        ended = self._clock()
        seconds = ended - self._began
        self._running.stop()
        trace = self._running.profiler
        assert trace is not None
        assert trace.kineto_results is not None
        events = trace.kineto_results.events()
        compute, communication = kernels(events) if self._on_gpu else operators(events)
        self._running = None
        self._due = inf
        if not compute:
            log.logger.warning("a step was traced without any result; steps are not sampled, see docs/monitoring.md")
            return
        self._tell(split_step_time(seconds, compute, communication))
        now = self._clock()
        self._due = now + (self._price + now - ended + max(0.0, seconds - self._usual)) / BUDGET

    def _wait_for_device(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _wanted() -> bool:
    given = os.environ.get(constants.ENV_STEP_SAMPLES) or "on"
    if given not in ("on", "off"):
        raise ConfigError(f"{constants.ENV_STEP_SAMPLES}: must be on or off, not {given}; correct it")
    return given == "on"


def kernels(events: Iterable[Any]) -> tuple[list[Interval], list[Interval]]:
    """What a GPU did: computation (copies, too), and NCCL's kernels, from when they run to when all ranks are done."""
    compute: list[Interval] = []
    communication: list[Interval] = []
    for event in events:
        if event.activity_type() in ("kernel", "gpu_memcpy", "gpu_memset"):
            (communication if "nccl" in event.name().lower() else compute).append(_interval(event))
    return compute, communication


def operators(events: Iterable[Any]) -> tuple[list[Interval], list[Interval]]:
    """What a CPU did: operators without those that they call, and the collectives and messages of gloo."""
    threads: dict[int, list[Any]] = {}
    communication = []
    for event in sorted(events, key=lambda event: (event.start_ns(), -event.end_ns())):
        if not event.is_async():
            threads.setdefault(event.start_thread_id(), []).append(event)
        elif event.name().startswith("gloo:"):
            communication.append(_interval(event))
    return [span for thread in threads.values() for span in _own_time(thread)], communication


def _own_time(events: list[Any]) -> Iterator[Interval]:
    """When one thread was in an operator that computes, and in none that it has called."""
    within: list[tuple[float, bool]] = []
    """End of each operator that the thread is in, the innermost last, and whether it computes."""
    at = 0.0
    for begin, end, computes in [
        *((*_interval(event), _computes(event.name())) for event in events),
        (inf, inf, False),
    ]:
        while within and within[-1][0] <= begin:
            ended, computed = within.pop()
            if computed:
                yield at, ended
            at = ended
        if within and within[-1][1]:
            yield at, begin
        within.append((end, computes))
        at = begin


def _computes(name: str) -> bool:
    """Whether an operator computes. Others mark a part of the program, or wait for a collective."""
    return name.startswith(COMPUTES) or ("::" in name and not name.startswith(WAITS))


def _interval(event: Any) -> Interval:
    return event.start_ns() / 1e9, event.end_ns() / 1e9


def split_step_time(seconds: float, compute: list[Interval], communication: list[Interval]) -> dict[str, float]:
    """The parts of a step of so many seconds; they add up to it."""
    computing, communicating, busy = (_length(some) for some in (compute, communication, compute + communication))
    return {
        "compute": busy - communicating,
        "overlap": computing + communicating - busy,
        "communication": busy - computing,
        "other": max(0.0, seconds - busy),
    }


def _length(intervals: list[Interval]) -> float:
    """Of their union."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
