"""Settings of a process for its GPU, its host and its interpreter."""

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.support.run_config import make_config
from tests.trainer.layouts import FSDP, Layout, pipe
from tests.trainer.pods import Starter, finish
from trainyard_trainer.launcher import pod_environment
from trainyard_trainer.runtime import device_settings, log
from trainyard_trainer.runtime.device_settings import GarbageCollection, attention_order, bind_to_numa_node, parse_cpus

FLASH, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
CUDNN, MATH = SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH


@pytest.mark.parametrize(("major", "first"), [(7, FLASH), (8, FLASH), (9, CUDNN), (10, CUDNN), (12, FLASH)])
def test_the_fastest_attention_of_a_generation_comes_first_and_the_one_without_limits_last(
    major: int, first: SDPBackend
) -> None:
    order = attention_order(major)
    assert order[0] == first
    assert order[2:] == [EFFICIENT, MATH]
    assert set(order) == {FLASH, CUDNN, EFFICIENT, MATH}


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of which only the properties exist."""
    properties = SimpleNamespace(major=9, name="GPU", pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: properties.major >= 8)
    return properties


def test_the_order_reaches_torch_and_old_gpus_are_warned_about(
    hopper: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log.logger, "warning", lambda text, *_: warnings.append(text))
    addresses: list[str] = []
    monkeypatch.setattr(device_settings, "bind_to_numa_node", addresses.append)
    before = torch._C._get_sdp_priority_order()
    device = torch.device("cuda", 0)
    try:
        device_settings.configure_device(device, bfloat16=True)
        assert torch._C._get_sdp_priority_order()[:4] == [3, 1, 2, 0]
        hopper.major = 7
        device_settings.configure_device(device, bfloat16=False)
        assert warnings == []
        device_settings.configure_device(device, bfloat16=True)
        assert len(warnings) == 1
    finally:
        torch._C._set_sdp_priority_order(before)
    assert addresses == ["0000:3b:00.0"] * 3


def test_a_cpu_needs_no_settings() -> None:
    before = torch._C._get_sdp_priority_order()
    device_settings.configure_device(torch.device("cpu"), bfloat16=True)
    assert torch._C._get_sdp_priority_order() == before


@pytest.fixture
def topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU beside the first processor that this process may use."""
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "numa_node").write_text("1\n")
    (tmp_path / "node1").mkdir()
    first = min(os.sched_getaffinity(0))
    (tmp_path / "node1" / "cpulist").write_text(f"{first}\n")
    monkeypatch.setattr(device_settings, "PCI_DEVICES", tmp_path)
    monkeypatch.setattr(device_settings, "NUMA_NODES", tmp_path)
    return tmp_path


def test_a_rank_stays_on_the_processors_beside_its_gpu(topology: Path) -> None:
    allowed = os.sched_getaffinity(0)
    near = {min(allowed)}
    try:
        assert bind_to_numa_node("0000:3b:00.0") == (near if near != allowed else set())
        assert os.sched_getaffinity(0) == near
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("node", "cpus"), [("-1", "0"), ("1", "4000-4001"), ("1", ""), ("x", "0")])
def test_a_rank_keeps_its_processors_where_none_of_them_is_nearer(topology: Path, node: str, cpus: str) -> None:
    (topology / "0000:3b:00.0" / "numa_node").write_text(node)
    (topology / "node1" / "cpulist").write_text(cpus)
    allowed = os.sched_getaffinity(0)
    assert bind_to_numa_node("0000:3b:00.0") == bind_to_numa_node("0000:00:00.0") == set()
    assert os.sched_getaffinity(0) == allowed


def test_lists_of_processors_are_those_of_the_kernel() -> None:
    assert parse_cpus("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpus("\n") == set()


@pytest.mark.parametrize("name", pod_environment.ALLOCATOR_SETTINGS)
def test_the_allocator_of_gpus_is_set_unless_the_user_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in pod_environment.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(other, raising=False)
    pod_environment.set_allocator()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv(name, "max_split_size_mb:128")
    pod_environment.set_allocator()
    assert [os.environ.get(other) for other in pod_environment.ALLOCATOR_SETTINGS if other != name] == [None, None]
    assert os.environ[name] == "max_split_size_mb:128"


def test_garbage_is_collected_after_the_same_steps_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda generation=2: collected.append(generation))
    garbage = GarbageCollection()
    garbage.start()
    try:
        assert not gc.isenabled()
        for step in range(1, 1051):
            garbage.after_step(step)
    finally:
        garbage.stop()
        gc.unfreeze()
    assert gc.isenabled()
    assert collected == [2, *[1] * 19, 2, 1]


@pytest.mark.parametrize(
    "layout",
    [Layout(1, {}), Layout(2, {"data": FSDP}), Layout(2, {"pipeline": pipe(2)}), Layout(2, {"tensor": 2})],
    ids=str,
)
def test_no_reference_cycle_holds_tensors_until_the_next_collection(start: Starter, layout: Layout) -> None:
    """They would stay for up to 1000 steps."""
    config = make_config(layout.processes, layout.parallelism, stop={"steps": 6})
    pods = start(config, 1, layout.processes, "tests.trainer.faults:look_for_tensors_in_garbage")
    assert finish(pods) == [0], pods[0].stderr
