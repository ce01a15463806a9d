"""Where a pod stands among all of its group, and what share of its node it may use. Free of torch."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from trainyard_trainer.runtime.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class PodEnvironment:
    """Where this pod's ranks stand among all."""

    first: int
    local_size: int
    size: int
    address: str
    port: str

    @classmethod
    def from_environment(cls) -> "PodEnvironment":
        """The place that the operator gave to this pod, in the variables of torchrun; without them a group of one pod.

        RANK and WORLD_SIZE stand above them, for groups whose pods are not all alike.

        Raises:
            ConfigError: a variable is missing, or no number.
        """
        local_size = _number("PET_NPROC_PER_NODE", 1)
        pods = _number("PET_NNODES", 1)
        first = _number("RANK", _number("PET_NODE_RANK", 0) * local_size)
        address, port = os.environ.get("PET_MASTER_ADDR"), os.environ.get("PET_MASTER_PORT")
        if address is None or port is None:
            if pods > 1:
                raise ConfigError("PET_MASTER_ADDR and PET_MASTER_PORT: are needed with PET_NNODES > 1; set both")
            address, port = "127.0.0.1", _free_port()
        return cls(first, local_size, _number("WORLD_SIZE", pods * local_size), address, port)

    def environment(self, local_rank: int) -> dict[str, str]:
        """What a rank finds in its environment, as with torchrun."""
        return {
            "RANK": str(self.first + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }


def set_threads(processes: int) -> None:
    """Share the processors between this node's processes, unless OMP_NUM_THREADS says otherwise.

    torchrun would give each process one thread. It must be set before libgomp is loaded.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // max(1, processes))))


def usable_cpus() -> int:
    """Processors that this process may use: its affinity, and the quota of its container (whole ones only)."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _cgroup_quota() -> float | None:
    """Processors that the control group allows (version 2, then 1); None without a limit."""
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
    """How many processes of this container the kernel has killed for want of memory, by its limit or the node's.

    Control groups of version 2 count them, then 1 (Linux 4.13); 0 where nobody does.
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


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
