"""How much of a step is computation, how much is communication, and how much of that overlaps with computation.

Collectives run in parallel with the computation, on gloo's threads or NCCL's streams, so a clock around a part of the
loop cannot measure how long a step waits for them. torch's profiler can, but it costs time. Therefore one step of
rank 0 is traced from time to time; the next one is due when the cost of the last trace is 0.05 % of the elapsed time.
The parts are those of the temporal breakdown of Holistic Trace Analysis.
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
"""compute: computation only. overlap: computation and communication at the same time. communication: only that,
including the wait for other ranks. other: neither (data loading, Python, kernel launches)."""
BUDGET = 0.0005
"""Largest share of the training time that tracing may cost."""
FIRST = 5.0
"""Seconds of training before the first traced step: allocators have warmed up and compilation is done by then."""

COMPUTE_PREFIXES = ("aten::", "## Call CompiledFxGraph")
WAIT_PREFIXES = ("c10d::", "_c10d_functional::", "autograd::", "torch::autograd::", "FSDP::")
"""Operators that start collectives or wait for them, and annotations around parts of the program."""

Interval = tuple[float, float]
"""Start and end, in seconds."""


class Breakdown(Observer):
    """Traces steps of this rank from time to time."""

    def __init__(
        self,
        publish: Callable[[dict[str, float]], None],
        device: torch.device,
        profiler: Profiler | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare to trace steps.

        Args:
            publish: receives the seconds of each part of a traced step.
            device: device of this rank.
            profiler: traces that were requested; while it traces, no other step is traced.
            clock: returns seconds.

        Raises:
            ConfigError: TRAINYARD_STEP_SAMPLES is neither on nor off.
        """
        self._publish = publish
        self._on_gpu = device.type == "cuda"
        self._profiler = profiler
        self._clock = clock
        self._due = clock() + FIRST if _enabled() else inf
        self._untraced_seconds = self._step_start = self._start_cost = 0.0
        self._running: profile | None = None

    def before_step(self, step: int) -> None:
        """Start to trace the step if a trace is due."""
        self._step_start = self._clock()
        if self._step_start >= self._due and not (self._profiler is not None and self._profiler.is_tracing):
            self._start()

    def _start(self) -> None:
        requested = self._step_start
        # On a GPU only kernels: tracing operators, too, would slow down the host, which launches them.
        self._running = profile(activities=[ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU])
        self._wait_for_device()
        self._running.start()
        self._step_start = self._clock()
        self._start_cost = self._step_start - requested

    def after_step(self, step: int) -> None:
        """Evaluate the trace if the step was traced, and schedule the next one."""
        if self._running is None:
            self._untraced_seconds = self._clock() - self._step_start
            return
        self._wait_for_device()
        ended = self._clock()
        seconds = ended - self._step_start
        self._running.stop()
        trace = self._running.profiler
        assert trace is not None
        assert trace.kineto_results is not None
        events = trace.kineto_results.events()
        compute, communication = kernels(events) if self._on_gpu else operators(events)
        self._running = None
        self._due = inf
        if not compute:
            log.logger.warning("a traced step had no computation; no more steps are traced, see docs/monitoring.md")
            return
        self._publish(split_step_time(seconds, compute, communication))
        now = self._clock()
        slowdown = max(0.0, seconds - self._untraced_seconds)
        self._due = now + (self._start_cost + now - ended + slowdown) / BUDGET

    def _wait_for_device(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def _enabled() -> bool:
    setting = os.environ.get(constants.ENV_STEP_SAMPLES) or "on"
    if setting not in ("on", "off"):
        raise ConfigError(f"{constants.ENV_STEP_SAMPLES}: must be on or off, not {setting}; correct it")
    return setting == "on"


def kernels(events: Iterable[Any]) -> tuple[list[Interval], list[Interval]]:
    """Return when a GPU computed (or copied), and when it communicated: NCCL's kernels, which wait for all ranks."""
    compute: list[Interval] = []
    communication: list[Interval] = []
    for event in events:
        if event.activity_type() in ("kernel", "gpu_memcpy", "gpu_memset"):
            (communication if "nccl" in event.name().lower() else compute).append(_interval(event))
    return compute, communication


def operators(events: Iterable[Any]) -> tuple[list[Interval], list[Interval]]:
    """Return when a CPU computed (own time of operators), and when gloo ran collectives or sent messages."""
    threads: dict[int, list[Any]] = {}
    communication = []
    for event in sorted(events, key=lambda event: (event.start_ns(), -event.end_ns())):
        if not event.is_async():
            threads.setdefault(event.start_thread_id(), []).append(event)
        elif event.name().startswith("gloo:"):
            communication.append(_interval(event))
    return [span for thread in threads.values() for span in _own_time(thread)], communication


def _own_time(events: list[Any]) -> Iterator[Interval]:
    """Return when one thread was in an operator that computes, without the operators it called (self time)."""
    stack: list[tuple[float, bool]] = []
    """End of each operator on the call stack, the innermost last, and whether it computes."""
    at = 0.0
    for begin, end, computes in [
        *((*_interval(event), _computes(event.name())) for event in events),
        (inf, inf, False),
    ]:
        while stack and stack[-1][0] <= begin:
            ended, computed = stack.pop()
            if computed:
                yield at, ended
            at = ended
        if stack and stack[-1][1]:
            yield at, begin
        stack.append((end, computes))
        at = begin


def _computes(name: str) -> bool:
    """Return whether an operator computes; others annotate a part of the program or wait for a collective."""
    return name.startswith(COMPUTE_PREFIXES) or ("::" in name and not name.startswith(WAIT_PREFIXES))


def _interval(event: Any) -> Interval:
    return event.start_ns() / 1e9, event.end_ns() / 1e9


def split_step_time(seconds: float, compute: list[Interval], communication: list[Interval]) -> dict[str, float]:
    """Return the seconds of each part of a step; they add up to `seconds`."""
    computing, communicating, busy = (_length(some) for some in (compute, communication, compute + communication))
    return {
        "compute": busy - communicating,
        "overlap": computing + communicating - busy,
        "communication": busy - computing,
        "other": max(0.0, seconds - busy),
    }


def _length(intervals: list[Interval]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
