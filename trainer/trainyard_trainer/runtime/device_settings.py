"""Settings of the device, the host and the interpreter that make a step faster or more even, and change no result."""

import gc
import os
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.torch_internals import pci_address, set_attention_order

PCI_DEVICES = Path("/sys/bus/pci/devices")
NUMA_NODES = Path("/sys/devices/system/node")
COLLECT_EVERY = 50
"""Steps from one garbage collection of young objects to the next."""
COLLECT_ALL_EVERY = 1000
"""Steps from one collection of all objects to the next."""


def configure_device(device: torch.device, *, bfloat16: bool) -> None:
    """Configure this process for its GPU, before the first tensor is there; nothing to do for a CPU.

    `bfloat16`: whether matrix products are computed in bfloat16.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    properties = torch.cuda.get_device_properties(device)
    set_attention_order(attention_order(properties.major))
    bind_to_numa_node(pci_address(device))
    if bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.logger.warning(
            "spec.trainer.precision: %s computes in bfloat16 by emulation, which is slow; set float32", properties.name
        )


def attention_order(major: int) -> list[SDPBackend]:
    """Return the kernels for attention, the preferred one first. The first one that can compute a call is used.

    On Hopper and Blackwell (compute capability 9 and 10) cuDNN uses instructions that FlashAttention 2 does not know,
    and is up to twice as fast; before them FlashAttention is. The memory-efficient kernel is for masks that
    FlashAttention cannot apply. The last one holds all T x T scores, and is for what no other computes: float32 with
    grouped heads, for example.
    """
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    if major in (9, 10):
        fast.reverse()
    return [fast[0], fast[1], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def bind_to_numa_node(address: str) -> set[int]:
    """Restrict this process to the processors beside its GPU, and return them; empty if it stays as it is.

    Copies to and from the other socket of a server take longer, and threads that move between sockets lose their
    caches. Threads that run already stay where they are, so this belongs at the start.

    Args:
        address: PCI address of the GPU, for example 0000:3b:00.0.
    """
    try:
        node = int((PCI_DEVICES / address / "numa_node").read_text())
        listed = (NUMA_NODES / f"node{node}" / "cpulist").read_text()
    # Not a physical machine, or a kernel without NUMA.
    except (OSError, ValueError):
        return set()
    allowed = os.sched_getaffinity(0)
    near = allowed & parse_cpus(listed)
    # A pod with processors of its own on the other socket keeps them all.
    if node < 0 or not near or near == allowed:
        return set()
    os.sched_setaffinity(0, near)
    return near


def parse_cpus(text: str) -> set[int]:
    """Return the processors of a list as the kernel writes it: 0-3,8,10-11."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


class GarbageCollection:
    """Collects garbage on all ranks after the same steps.

    Python collects by itself when it has made enough objects, which is at another moment on each rank, and all others
    wait for that rank in the next collective. A complete collection of a large program takes tenths of a second.
    """

    def start(self) -> None:
        """Collect what the start has left, exclude what is there from later collections, and stop automatic ones."""
        gc.disable()
        gc.collect()
        gc.freeze()

    def after_step(self, step: int) -> None:
        """Collect if it is due. Objects in cycles can hold tensors, so they must not stay for ever."""
        if step % COLLECT_ALL_EVERY == 0:
            gc.collect()
        elif step % COLLECT_EVERY == 0:
            gc.collect(1)

    def stop(self) -> None:
        """Let Python collect by itself again."""
        gc.enable()
