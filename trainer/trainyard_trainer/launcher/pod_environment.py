"""The ranks of a pod within its group, and the share of its node that it may use. Free of torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from trainyard.net import free_port
from trainyard_trainer.runtime.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that torch reads the settings of its allocator from; the first one is for all devices."""


@dataclass(frozen=True)
class PodEnvironment:
    """Ranks of this pod within the group, and the address where all ranks meet."""

    first_rank: int
    local_size: int
    """Ranks of this pod."""
    world_size: int
    """Ranks of all pods."""
    master_address: str
    master_port: str

    @classmethod
    def from_environment(cls) -> "PodEnvironment":
        """Read torchrun's variables, which the operator sets; without them the group is this pod alone.

        RANK and WORLD_SIZE take precedence, for groups whose pods differ (a parameter server).

        Raises:
            ConfigError: a variable is missing, or is not a number.
        """
        local_size = _number("PET_NPROC_PER_NODE", 1)
        pods = _number("PET_NNODES", 1)
        first_rank = _number("RANK", _number("PET_NODE_RANK", 0) * local_size)
        address, port = os.environ.get("PET_MASTER_ADDR"), os.environ.get("PET_MASTER_PORT")
        if address is None or port is None:
            if pods > 1:
                raise ConfigError("PET_MASTER_ADDR and PET_MASTER_PORT: are needed with PET_NNODES > 1; set both")
            address, port = "127.0.0.1", str(free_port())
        return cls(first_rank, local_size, _number("WORLD_SIZE", pods * local_size), address, port)

    def rank_environment(self, local_rank: int) -> dict[str, str]:
        """Return the environment variables of one rank, as torchrun sets them."""
        return {
            "RANK": str(self.first_rank + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": self.master_port,
        }


def set_threads(processes: int) -> None:
    """Divide the processors among this pod's ranks, unless OMP_NUM_THREADS is set.

    torchrun would give each process one thread. It must be set before libgomp is loaded. The OpenBLAS of NumPy would
    start its threads when it is imported, before the launcher forks; training does not use it, so it gets none.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // max(1, processes))))


def set_allocator() -> None:
    """Let torch's allocator on GPUs enlarge its segments, unless its settings are given.

    Without this, memory that is free in pieces cannot be used for a larger tensor: with sizes that change from step to
    step, as those of experts do, a tenth and more of a GPU. It must be set before torch is imported.
    """
    if not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ[ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"


def usable_cpus() -> int:
    """Return the processors that this process may use: those of its affinity, limited by its container's quota."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _cgroup_quota() -> float | None:
    """Return the processors that the control group (version 2, then 1) allows; None without a limit."""
    v2 = CGROUP / "cpu.max"
    v1 = CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu/cpu.cfs_period_us"
    if v2.exists():
        quota, period = v2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if all(path.exists() for path in v1):
        quota, period = (path.read_text() for path in v1)
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


def oom_kill_count() -> int:
    """Return how many processes of this container the kernel's OOM killer has killed, by any memory limit.

    Control groups count them (version 2; version 1 since Linux 4.13); 0 where they do not.
    """
    for name in ("memory.events", "memory/memory.oom_control"):
        if (path := CGROUP / name).exists():
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable)
    if text is None:
        return default
    if not text.isdecimal():
        raise ConfigError(f"{variable}: must be a whole number, not {text!r}; correct it, or remove it")
    return int(text)
