"""One worker pod: the launcher, and the training processes (ranks) that it starts and watches.

The launcher imports all that a rank needs and then forks. So a pod imports torch once, however many ranks it has, and
the ranks share the memory of what is imported; the first step comes in half the time that it takes with torchrun,
whose agent imports torch for itself.

A process may be forked only while it has no other thread, since a lock that another thread holds at that moment stays
locked in the child for ever. torchrun's agent has such threads when it forks (its store resolves addresses, and the
resolver has a lock), and about one start in fifty hung. So the launcher never has a second thread (a test holds this):
it waits for signals, of which the end of a rank is one, and looks at the ranks' signs of life in between. Nothing that
is imported runs a tensor operation or calls CUDA, so every rank opens its device itself.

When the ranks fail, the launcher may be told to fork them again, for the next attempt (`launcher`).
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from trainyard.protocol.launcher import Launcher, adopt_orphans, clear_word, hold_signals
from trainyard_trainer import rank_process
from trainyard_trainer.launcher.pod_environment import PodEnvironment, set_threads
from trainyard_trainer.launcher.rank_processes import RankProcesses, told_to_stop
from trainyard_trainer.runtime import process_exit


def main() -> NoReturn:
    """Run this pod's ranks to their end, and end with their exit code.

    The variables of torchrun (PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT) say how
    many there are and where they meet. The group starts anew as a whole, so nothing is restarted here but by an
    order of the operator, which sees all pods; without one a failure ends the pod.
    """
    # At once: as process 1 of a container this would otherwise ignore SIGTERM. The mask passes to the ranks.
    hold_signals()
    adopt_orphans()
    try:
        place = PodEnvironment.from_environment()
        set_threads(place.local_size)
        # Attempts to reach a node that is not up yet would each be a warning.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Each trace would be two lines, and on a CPU an error that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with _importing():
            import torch._dynamo  # noqa: F401 (optimizers and DDP import it when first used)

    except Exception as error:  # noqa: BLE001 (the last word of this pod, whatever the error is)
        process_exit.exit_with_error(error, rank=None, step=None)
    if (received := process_exit.pending_stop_signal()) is not None:
        process_exit.exit_now(told_to_stop(received))
    launcher = Launcher.from_environment()
    while True:
        ranks = RankProcesses(place, launcher)
        ranks.start(rank_process.main)
        code = ranks.wait()
        if not ranks.can_restart_in_place() or not (launcher.ordered or launcher.hold(code)):
            process_exit.exit_now(code)
        clear_word()


@contextmanager
def _importing() -> Iterator[None]:
    """Import without garbage collection, and never again look at what was imported; this saves a tenth."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
