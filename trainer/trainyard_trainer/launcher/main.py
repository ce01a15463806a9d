"""The launcher: the first process of a worker pod, which starts the training processes (ranks) and watches them.

The launcher imports all that a rank needs and then forks. So a pod imports torch once, however many ranks it has, and
the ranks share the memory of what is imported; the first step comes in half the time that it takes with torchrun,
whose agent imports torch for itself.

A process may be forked only while it has no other thread, since a lock that another thread holds at that moment stays
locked in the child for ever. torchrun's agent has such threads when it forks (its store resolves addresses, and the
resolver has a lock), and about one start in fifty hung. So the launcher never has a second thread (a test checks this):
it waits for signals, among them the end of a rank, and checks the ranks' heartbeats in between. No import runs a tensor
operation or calls CUDA, so every rank opens its device itself.

When the ranks fail, the operator may request that the launcher forks them again for the next attempt (`Launcher`).
"""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainyard.protocol.launcher import (
    STOP_SIGNALS,
    Launcher,
    become_subreaper,
    block_signals,
    clear_termination_message,
)
from trainyard_trainer.launcher.pod_environment import PodEnvironment, set_allocator, set_threads
from trainyard_trainer.launcher.rank_processes import RankProcesses, stopped_before_training
from trainyard_trainer.runtime import process_exit


def main() -> NoReturn:
    """Run the ranks of this pod to their end, and exit with their exit code.

    torchrun's variables (PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT) set the
    number of ranks and the address where they meet. Ranks restart only all together, and only the operator sees all
    pods, so ranks are started again only on its request; otherwise a failure ends the pod.
    """
    # First of all: process 1 of a container ignores SIGTERM unless it handles it. The ranks inherit the signal mask.
    block_signals()
    become_subreaper()
    try:
        environment = PodEnvironment.from_environment()
        set_threads(environment.local_size)
        set_allocator()
        # Each attempt to reach a node that is not up yet would log a warning.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Each trace would log two lines, and on a CPU the error that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with _stoppable(), _importing():
            import torch._dynamo  # noqa: F401 (optimizers and DDP import it when first used)

            from trainyard_trainer import rank_process
            from trainyard_trainer.parallel import pipeline_schedule  # noqa: F401 (ranks of a pipeline import it late)

    except Exception as error:  # noqa: BLE001 (every error becomes the termination message of this pod)
        process_exit.exit_with_error(error, rank=None, step=None)
    launcher = Launcher.from_environment()
    # After the imports, which take longer than it usually takes until the name exists.
    if (received := launcher.await_address(environment.master_address)) is not None:
        process_exit.exit_now(stopped_before_training(received))
    while True:
        ranks = RankProcesses(environment, launcher)
        ranks.start(rank_process.main)
        code = ranks.wait()
        # Wait for a restart request of the operator, where another attempt in this pod can help.
        if not ranks.can_restart_in_place() or not (launcher.restart_requested or launcher.wait_for_request(code)):
            process_exit.exit_now(code)
        clear_termination_message()


@contextmanager
def _stoppable() -> Iterator[None]:
    """End this process at once when it is told to stop: imports may take a minute on a busy node."""

    def stop(number: int, _: object) -> None:
        # Without flushing: the signal may have interrupted a write.
        os._exit(stopped_before_training(signal.Signals(number)))

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    yield
    process_exit.block_stop_signals()
    for number, handler in previous.items():
        signal.signal(number, handler)


@contextmanager
def _importing() -> Iterator[None]:
    """Import without garbage collection, and exclude what was imported from later collections: a tenth faster."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
