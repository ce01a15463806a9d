"""One worker pod: torchrun's agent, and the training processes that it starts and watches.

The agent imports all that a training process needs and then forks, for two reasons. It costs one import of torch
instead of two: on two cores the first step comes 3.0 s after the command, as with a plain `python train.py`, and
after 4.4 s when torchrun starts a new interpreter. And the ranks of a node share the memory of what is imported.
Forking is safe here because the agent runs nothing of what it imports: no tensor operation, so OpenMP and autograd
have no threads, and no CUDA call, so every rank opens its device itself (a test holds this).
"""

import gc
import logging
import multiprocessing
import os
import signal
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainyard.termination import TerminationMessage
from trainyard_trainer import ending

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig

STOP_SECONDS = 10.0
"""Time that the processes get to end after SIGTERM."""

CGROUP = Path("/sys/fs/cgroup")


def main() -> NoReturn:
    """Run this pod's training processes to their end, and end with their exit code.

    The PET_ variables of torchrun say how many processes there are and where the others meet. Nothing is
    restarted here: a failure ends the pod, and the operator starts the whole group anew.
    """
    # At once: as process 1 of a container this would otherwise ignore SIGTERM, and waiting for another node in
    # C++ it would not hear it. The mask passes to the processes, which have a thread of their own that waits.
    ending.on_stop_signal(_stop)
    _set_threads()
    # Attempts to reach a node that is not up yet would each be a warning.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _importing():
        import torch._dynamo  # noqa: F401 (optimizers and DDP import it when first used)
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import elastic_launch

        from trainyard_trainer import worker

    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print a traceback of the agent
    try:
        elastic_launch(_launch_config(), worker.main)()
    except ChildFailedError as error:
        ending.exit_now(_explain(error))
    except Exception as error:  # noqa: BLE001 (the last word of this pod, whatever the error is)
        ending.fail(error, rank=None, step=None)
    ending.exit_now(0)


def _launch_config() -> "LaunchConfig":
    from torch.distributed import run as torchrun

    # SIGTERM and SIGINT never reach the agent's own handlers: see _stop.
    fixed = ["--max-restarts=0", "--start-method=fork", "--signals-to-handle=SIGTERM,SIGINT"]
    args = torchrun.get_args_parser().parse_args([*fixed, "trainyard_trainer"])
    if args.master_port is None:  # by hand, on one machine: any free port will do
        args.rdzv_backend, args.rdzv_endpoint, args.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    args.log_dir = os.devnull  # processes write straight to this one's standard output and error
    config, _, _ = torchrun.config_from_args(args)
    return config


def _explain(failed: "ChildFailedError") -> int:
    """The exit code for a failed process; if a signal killed it, this also leaves the last word that it could not."""
    rank, failure = failed.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    number = -failure.exitcode
    name = signal.Signals(number).name
    hint = "; the usual reason is its memory limit" if number == signal.SIGKILL else ""
    message = f"rank {rank} was killed by {name}{hint}"
    ending.leave_word(TerminationMessage(rank=rank, exception=name, message=message))
    return 128 + number


def _stop(received: signal.Signals) -> NoReturn:
    """Pass a signal on to the processes, let them say their last word, and end."""
    children = multiprocessing.active_children()
    for child in children:
        if child.pid is not None:
            os.kill(child.pid, received)
    patience = time.monotonic() + STOP_SECONDS
    while any(child.is_alive() for child in children) and time.monotonic() < patience:
        time.sleep(0.02)
    for child in children:
        child.kill()
    ending.leave_word(TerminationMessage(exception=received.name, message="told to stop before the training began"))
    ending.exit_now(128 + received)


@contextmanager
def _importing() -> "Iterator[None]":
    """Import without garbage collection, and never again look at what was imported; this saves a tenth."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _set_threads() -> None:
    """Share the processors between this node's processes, unless OMP_NUM_THREADS says otherwise.

    torchrun would give each process one thread. It must be set before libgomp is loaded.
    """
    processes = os.environ.get("PET_NPROC_PER_NODE", "1")
    if processes.isdecimal():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // int(processes))))


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
