"""Parts of a step: computation, communication, and their overlap."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, Layout, pipe
from tests.trainer.pods import Pod, Starter, wait_until
from tests.trainer.test_metrics import scrape, value
from trainyard.protocol import constants, worker_metrics
from trainyard.resource.training import Profile
from trainyard_trainer.metrics.breakdown import BUDGET, FIRST, PARTS, Breakdown, kernels, operators, split_step_time
from trainyard_trainer.metrics.observer import Observer
from trainyard_trainer.metrics.profiling import Profiler
from trainyard_trainer.runtime.errors import ConfigError

CPU = torch.device("cpu")


@dataclass
class Event:
    """An event of torch's profiler: an operator or a kernel; times in seconds."""

    label: str
    begin: float
    end: float
    thread: int = 1
    asynchronous: bool = False
    kind: str = "cpu_op"

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return round(self.begin * 1e9)

    def end_ns(self) -> int:
        return round(self.end * 1e9)

    def start_thread_id(self) -> int:
        return self.thread

    def is_async(self) -> bool:
        return self.asynchronous

    def activity_type(self) -> str:
        return self.kind


def total(intervals: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in intervals)


def test_waiting_inside_an_operator_is_not_computation() -> None:
    compute, communication = operators(
        [
            Event("DistributedDataParallel.forward", 0, 10),
            Event("aten::mm", 1, 9),  # of a DTensor: it gathers its operand before it multiplies
            Event("_c10d_functional::all_gather_into_tensor", 2, 3),
            Event("_c10d_functional::wait_tensor", 3, 6),
            Event("aten::mm", 6, 8.5),
            Event("aten::empty", 6, 6.5),
            Event("aten::add", 12, 13, thread=2),
            Event("gloo:all_gather", 2.5, 6, thread=7, asynchronous=True),
            Event("some other mark", 2.5, 6, thread=7, asynchronous=True),
        ]
    )
    assert total(compute) == pytest.approx(1 + 3 + 1)
    assert communication == [(2.5, 6)]


def test_nccl_kernels_are_communication() -> None:
    kernel = {"kind": "kernel"}
    compute, communication = kernels(
        [
            Event("ampere_sgemm_128x64", 0, 2, **kernel),  # type: ignore[arg-type]
            Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 1, 4, **kernel),  # type: ignore[arg-type]
            Event("Memcpy DtoD", 4, 5, kind="gpu_memcpy"),
            Event("nccl:all_reduce", 0, 9, kind="gpu_user_annotation"),
            Event("cudaLaunchKernel", 0, 9, kind="cuda_runtime"),
        ]
    )
    assert (compute, communication) == ([(0, 2), (4, 5)], [(1, 4)])
    assert split_step_time(6, compute, communication) == {"compute": 2, "overlap": 1, "communication": 2, "other": 1}


intervals = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda x: (float(x[0]), float(sum(x)))))


@given(intervals, intervals)
def test_parts_of_a_step_match_its_moments_and_add_up(
    compute: list[tuple[float, float]], communication: list[tuple[float, float]]
) -> None:
    moments = dict.fromkeys(PARTS, 0.0)
    for moment in range(60):
        computes, communicates = (any(b <= moment < e for b, e in some) for some in (compute, communication))
        names = {(1, 1): "overlap", (1, 0): "compute", (0, 1): "communication", (0, 0): "other"}
        moments[names[computes, communicates]] += 1
    assert split_step_time(60, compute, communication) == moments


class TracedRun:
    """A breakdown of steps of one second each, with a simulated clock."""

    def __init__(self, price: float, profiler: Profiler | None = None) -> None:
        self.now, self.price, self.step = 0.0, price, 0
        self.samples: list[float] = []
        breakdown = Breakdown(self.record, CPU, profiler, lambda: self.now)
        self.observers: list[Observer] = [breakdown] if profiler is None else [profiler, breakdown]

    def record(self, _: dict[str, float]) -> None:
        self.samples.append(self.now)
        self.now += self.price

    def run(self, steps: int) -> list[float]:
        """Return the times of the traced steps."""
        for _ in range(steps):
            self.step += 1
            for observer in self.observers:
                observer.before_step(self.step)
            torch.ones(2).add_(1)
            self.now += 1
            for observer in self.observers:
                observer.after_step(self.step)
        return self.samples


@pytest.mark.parametrize("price", [0.01, 0.1])
def test_traces_cost_no_more_than_their_share_of_the_time(price: float) -> None:
    found = TracedRun(price).run(500)
    assert found[0] == FIRST + 1
    assert found[1] - found[0] == pytest.approx(price / BUDGET, abs=2)


def test_requested_trace_has_priority(tmp_path: Path) -> None:
    profiler = Profiler(Profile(start_step=5, steps=4), tmp_path, 0, 1, CPU)
    assert TracedRun(0.01, profiler).run(10) == [9 + FIRST - 5]
    assert len(list((tmp_path / "profiles").iterdir())) == 1


def test_tracing_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(constants.ENV_STEP_SAMPLES, "off")
    assert TracedRun(0.01).run(20) == []
    monkeypatch.setenv(constants.ENV_STEP_SAMPLES, "no")
    with pytest.raises(ConfigError, match=r"TRAINYARD_STEP_SAMPLES: must be on or off, not no"):
        TracedRun(0.01)


LAYOUTS = [
    Layout(2, {}),
    Layout(2, {"data": FSDP}),
    Layout(2, {"tensor": 2}),
    Layout(2, {"pipeline": pipe(2)}),
]


def parts(pod: Pod) -> dict[str, float]:
    families = scrape(pod)
    if worker_metrics.STEP_PART.name not in families:
        return {}
    return {part: value(families, worker_metrics.STEP_PART.name, part=part) for part in PARTS}


@pytest.mark.parametrize("layout", [Layout(1, {}), *LAYOUTS], ids=str)
def test_rank_that_waits_for_another_shows_communication(start: Starter, layout: Layout) -> None:
    config = make_config(layout.processes, layout.parallelism, stop={"steps": 100_000}, logEverySteps=100)
    (pod,) = start(config, 1, layout.processes, "tests.trainer.faults:rank_0_waits")
    pod.wait_for_step(1)

    def as_expected() -> bool:
        found = parts(pod)
        communication = found.get("communication", -1.0)
        return communication == 0 if layout.processes == 1 else 0.5 < communication < 1

    wait_until(as_expected, 30, lambda: f"{parts(pod)} {pod.stderr}")
    found = parts(pod)
    assert sum(found.values()) == pytest.approx(1)
    assert found["compute"] > 0
    os.kill(pod.pid, 15)
    pod.wait(60)
    assert "kineto" not in pod.stderr.lower()
    assert "USDT" not in pod.stderr
