"""Where a process stands among the others, and what it computes on."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from trainyard.protocol import launcher_protocol
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.gloo import use_one_thread

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A collective that takes longer than this has lost a peer which nobody saw die."""


@dataclass
class World:
    """Rank and device of this process; the launcher says which, in the environment, as torchrun does."""

    rank: int
    local_rank: int
    size: int
    """Ranks that train."""
    local_size: int
    device: torch.device
    servers: int = 0
    """Parameter servers; their ranks come after those that train."""
    group: dist.ProcessGroup | None = None
    """The ranks that train; None if there are no others."""
    control: dist.ProcessGroup | None = None
    """The same ranks over gloo, for what is said beside the training; only where checkpoints are written."""

    @classmethod
    def from_environment(cls, servers: int = 0) -> "World":
        """The place that the launcher gave to this process.

        Raises:
            ConfigError: the node has GPUs, but fewer than processes.
        """
        local_rank = int(os.environ["LOCAL_RANK"])
        return cls(
            rank=int(os.environ["RANK"]),
            local_rank=local_rank,
            size=int(os.environ["WORLD_SIZE"]) - servers,
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            device=_device(local_rank),
            servers=servers,
        )

    def init_process_group(self, *, saves: bool = False) -> None:
        """Set the device, then form the process group with all other ranks.

        A parameter server may have no GPU, so with one everybody meets over gloo, and those that train also among
        themselves. `saves`: checkpoints will be written.
        """
        use_one_thread()
        backend = "gloo"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            backend = "nccl"
        place = {"timeout": COLLECTIVE_TIMEOUT, **self._meeting()}
        if self.servers:
            dist.init_process_group("gloo", **place)
            group = dist.new_group(list(range(self.size)), COLLECTIVE_TIMEOUT, backend)
            self.group = group if isinstance(group, dist.ProcessGroup) else None  # the server is no member
        elif self.size > 1:
            dist.init_process_group(
                backend,
                device_id=self.device if backend == "nccl" else None,
                **place,
            )
        elif saves:  # torch's way to save in the background needs a group, be it of one
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        if saves:
            control = dist.new_group(list(range(self.size)), COLLECTIVE_TIMEOUT, "gloo")
            self.control = control if isinstance(control, dist.ProcessGroup) else None

    def _meeting(self) -> dict[str, Any]:
        """Where the ranks of this attempt meet. One of an earlier attempt that is still about must not count here.

        torchrun's agent keeps a store of its own, and sees to that itself.
        """
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return {}
        size = self.size + self.servers
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # Everybody would be counted when it waits for workers by itself.
        store = TCPStore(address, port, size, self.rank == 0, COLLECTIVE_TIMEOUT, wait_for_workers=False)
        prefix = f"attempt {os.environ.get(launcher_protocol.ENV_ATTEMPT, '0')}"
        return {"store": PrefixStore(prefix, store), "rank": self.rank, "world_size": size}

    def barrier(self) -> None:
        """Wait for all ranks, parameter servers too."""
        if self.size + self.servers > 1:
            dist.barrier()

    def all_equal(self, value: int) -> bool:
        """Whether all ranks hold the same number (of up to 63 bits)."""
        if self.size == 1:
            return True
        extremes = torch.tensor([value, -value], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self.group)
        largest, negated_smallest = extremes.tolist()
        return bool(largest == -negated_smallest)

    def all_true(self, holds: bool) -> bool:
        """Whether something holds on every rank that trains."""
        if self.size == 1:
            return holds
        count = torch.tensor([int(holds)], device=None if self.control else self.device)
        dist.all_reduce(count, op=dist.ReduceOp.MIN, group=self.control or self.group)
        return bool(count.item())

    def gather(self, value: float) -> list[float]:
        """The number of each rank that trains, by rank, on each of them."""
        values = torch.zeros(self.size, device=self.device)
        values[self.rank] = value
        return [float(v) for v in self.sum(values).tolist()]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over the ranks that train, in place, on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"spec.workers.procsPerWorker: local rank {local_rank} has no GPU of its own, the worker sees only "
            f"{torch.cuda.device_count()}; lower procsPerWorker, or raise nvidia.com/gpu in "
            "spec.workers.resources.limits"
        )
    return torch.device("cuda", local_rank)
