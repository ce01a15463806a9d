"""Ranks, process groups, and the device of this process."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from trainyard.protocol import constants, launcher_protocol
from trainyard.resource import devices
from trainyard.resource.health import DEFAULT_STARTUP_TIMEOUT
from trainyard_trainer.runtime.device_position import follow_gpu
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.torch_internals import HashStore, PrefixStore, TCPStore, use_one_gloo_thread

COLLECTIVE_TIMEOUT = timedelta(minutes=12)
"""Shortest timeout of a collective: one that takes longer has lost a peer whose death was not noticed."""
HANG_MARGIN = timedelta(minutes=2)
"""How much later than the hang detection of the launchers a collective times out. The order is: the launchers detect
the hang, stacks and flight recorders are written, ranks are killed; the timeout is for where no launcher watches."""
STORAGE_TIMEOUT = timedelta(days=1)
"""Timeout of the control group: ranks wait in it for checkpoints of others, and storage may take any time."""


def collective_timeout(hang_timeout: float | None) -> timedelta:
    """Return the timeout of collectives between ranks that train.

    `hang_timeout`: spec.health.hangTimeoutSeconds; None: automatic, which is 600 s for a phase that is new, and for
    others 20 times as long as they take. Only a phase that takes half a minute is later than the collective then.
    """
    return max(COLLECTIVE_TIMEOUT, timedelta(seconds=hang_timeout or 0.0) + HANG_MARGIN)


@dataclass
class World:
    """Rank and device of this process, from the environment variables that the launcher sets as torchrun does."""

    rank: int
    local_rank: int
    size: int
    """Number of ranks that train."""
    local_size: int
    device: torch.device
    servers: int = 0
    """Number of parameter servers; their ranks follow those that train."""
    group: dist.ProcessGroup | None = None
    """The ranks that train; None means the default group, without parameter servers."""
    control: dist.ProcessGroup | None = None
    """The ranks that train, over gloo, for collectives of the control plane; only where checkpoints are written."""
    timeout: timedelta = COLLECTIVE_TIMEOUT
    """Timeout of collectives, for all groups but `control`."""

    @classmethod
    def from_environment(cls, servers: int = 0) -> "World":
        """Read the variables that the launcher has set.

        Raises:
            ConfigError: the node has GPUs, but fewer than ranks.
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

    @classmethod
    def alone(cls) -> "World":
        """Return this process as the only rank, on a GPU if there is one, in a process group of its own."""
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        return cls(0, 0, 1, 1, _device(0))

    def init_process_group(
        self,
        *,
        saves: bool = False,
        patience: float = DEFAULT_STARTUP_TIMEOUT,
        hang_timeout: float | None = None,
    ) -> None:
        """Set the device, and form the process groups with all other ranks.

        A parameter server may have no GPU, so the default group uses gloo then, and the ranks that train have another
        group.

        Args:
            saves: whether checkpoints will be written.
            patience: seconds to wait for the other ranks, whose pods may still wait for a node or an image.
            hang_timeout: spec.health.hangTimeoutSeconds; None: automatic.

        Raises:
            DistStoreError: other ranks did not arrive in time.
        """
        use_one_gloo_thread()
        self.timeout = collective_timeout(hang_timeout)
        backend = "gloo"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            follow_gpu()
            backend = "nccl"
            # A thread of torch ends a process whose watchdog is stuck in CUDA: it, too, comes after the launcher.
            os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", f"{self.timeout.total_seconds():.0f}")
        rendezvous = {"timeout": self.timeout, **self._rendezvous(patience)}
        if self.servers:
            dist.init_process_group("gloo", **rendezvous)
            group = dist.new_group(list(range(self.size)), self.timeout, backend)
            self.group = group if isinstance(group, dist.ProcessGroup) else None  # the server is no member
        elif self.size > 1:
            dist.init_process_group(
                backend,
                device_id=self.device if backend == "nccl" else None,
                **rendezvous,
            )
        else:  # asynchronous checkpoints and fully_shard need a group, even of a single rank
            dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        if saves:
            control = dist.new_group(list(range(self.size)), STORAGE_TIMEOUT, "gloo")
            self.control = control if isinstance(control, dist.ProcessGroup) else None

    def _rendezvous(self, patience: float) -> dict[str, Any]:
        """Return the store through which the ranks of this attempt find each other.

        Ranks of an earlier attempt that are still alive must not be counted, so keys carry the number of the attempt.
        torchrun's agent has a store of its own, and does that itself.
        """
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return {}
        size = self.size + self.servers
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # If the store waited for workers itself, it would count ranks of any attempt.
        tcp_store = TCPStore(address, port, size, self.rank == 0, timedelta(seconds=patience), wait_for_workers=False)
        store = PrefixStore(f"attempt {launcher_protocol.attempt_number()}", tcp_store)
        _await_ranks(store, size, patience)
        store.set_timeout(COLLECTIVE_TIMEOUT)
        return {"store": store, "rank": self.rank, "world_size": size}

    def barrier(self) -> None:
        """Wait for all ranks, including parameter servers."""
        if self.size + self.servers > 1:
            dist.barrier()

    def all_equal(self, value: int) -> bool:
        """Return whether all ranks that train hold the same number (of up to 63 bits)."""
        if self.size == 1:
            return True
        extremes = torch.tensor([value, -value], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self.group)
        largest, negated_smallest = extremes.tolist()
        return bool(largest == -negated_smallest)

    def all_true(self, condition: bool) -> bool:
        """Return whether a condition holds on every rank that trains."""
        if self.size == 1:
            return condition
        count = torch.tensor([int(condition)], device=None if self.control else self.device)
        dist.all_reduce(count, op=dist.ReduceOp.MIN, group=self.control or self.group)
        return bool(count.item())

    def gather(self, value: float) -> list[float]:
        """Return the numbers of all ranks that train [size], by rank, on each of them."""
        values = torch.zeros(self.size, device=self.device)
        values[self.rank] = value
        return [float(v) for v in self.sum(values).tolist()]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks that train, in place, on each of them, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor


def _await_ranks(store: PrefixStore, size: int, patience: float) -> None:
    """Wait until all ranks of the attempt have reached the store.

    Raises:
        DistStoreError: they have not in `patience` seconds.
        DistNetworkError: the process of rank 0 has ended.
    """
    if store.add("arrived", 1) == size:
        store.set("all arrived", "")
    try:
        store.wait(["all arrived"], timedelta(seconds=patience))
    except dist.DistStoreError as error:
        raise dist.DistStoreError(
            f"{store.add('arrived', 0)} of {size} ranks arrived within {patience:.0f} s "
            "(spec.health.startupTimeoutSeconds)"
        ) from error


def _device(local_rank: int) -> torch.device:
    """Return the GPU of this rank; the CPU if there is none and none is promised.

    Raises:
        ConfigError: the image has torch for other devices, or there are fewer GPUs than ranks.
        RuntimeError: torch sees no GPU, although the node has given one to the worker.
    """
    if not torch.cuda.is_available():
        if resource := os.environ.get(constants.ENV_DEVICE):
            _explain_missing_gpu(resource)
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"spec.workers.procsPerWorker: local rank {local_rank} has no GPU of its own, the worker sees only "
            f"{torch.cuda.device_count()}; lower procsPerWorker, or raise the number of GPUs in "
            "spec.workers.resources.limits"
        )
    return torch.device("cuda", local_rank)


def _explain_missing_gpu(resource: str) -> NoReturn:
    """Raise the error for a worker that has a GPU which torch does not see: it must not compute on the CPU instead."""
    built_for = "ROCm" if torch.version.hip is not None else "CUDA" if torch.version.cuda is not None else "CPUs"
    # The vendor of a claimed device is not known.
    needed = {constants.DEVICE_CLAIM: ("CUDA", "ROCm"), devices.AMD: ("ROCm",)}.get(resource, ("CUDA",))
    if built_for not in needed:
        raise ConfigError(
            f"spec.image: its torch is built for {built_for}, but the worker has {resource}; use an image with torch "
            "for CUDA (GPUs of NVIDIA) or ROCm (GPUs of AMD)"
        )
    # Words of CUDA, by which the operator knows a node whose GPU cannot be used.
    raise RuntimeError(f"no CUDA-capable device is detected: the worker has {resource}, but torch sees no GPU")
