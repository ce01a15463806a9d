"""One worker pod: the launcher, and the training processes (ranks) that it starts and watches.

The launcher imports all that a rank needs and then forks. So a pod imports torch once, however many ranks it has, and
the ranks share the memory of what is imported; the first step comes in half the time that it takes with torchrun,
whose agent imports torch for itself.

A process may be forked only while it has no other thread, since a lock that another thread holds at that moment stays
locked in the child for ever. torchrun's agent has such threads when it forks (its store resolves addresses, and the
resolver has a lock), and about one start in fifty hung. So the launcher never has a second thread (a test holds this):
it waits for signals, of which the end of a rank is one, and looks at the ranks' signs of life in between. Nothing that
is imported runs a tensor operation or calls CUDA, so every rank opens its device itself.
"""

import gc
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from trainyard import contract
from trainyard.termination import TerminationMessage
from trainyard_trainer import ending, heartbeat
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.hang import ANSWER_SECONDS, LOOK_SECONDS, Stacks, Watch, Witness, last_word, process_state
from trainyard_trainer.heartbeat import Hearts

STOP_SECONDS = 10.0
"""Time that the ranks get to end when this pod is told to stop, unless the operator gives them more."""
END_SECONDS = 2.0
"""Of that time, what is left to the launcher; and the time that ranks get to end after another one has failed."""
REAP_SECONDS = 1.0
"""Time in which a rank that was killed is gone, unless it is stuck in the kernel."""

CGROUP = Path("/sys/fs/cgroup")


def main() -> NoReturn:
    """Run this pod's ranks to their end, and end with their exit code.

    The variables of torchrun (PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR, PET_MASTER_PORT) say how
    many there are and where they meet. Nothing is restarted here: a failure ends the pod, and the operator starts the
    whole group anew.
    """
    # At once: as process 1 of a container this would otherwise ignore SIGTERM. The mask passes to the ranks.
    ending.hold_stop_signals()
    try:
        place = Place.from_environment()
        _set_threads(place.local_size)
        # Attempts to reach a node that is not up yet would each be a warning.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with _importing():
            import torch._dynamo  # noqa: F401 (optimizers and DDP import it when first used)

            from trainyard_trainer import worker
    except Exception as error:  # noqa: BLE001 (the last word of this pod, whatever the error is)
        ending.fail(error, rank=None, step=None)
    if (received := ending.held_stop_signal()) is not None:
        ending.exit_now(_told_to_stop(received))
    ranks = Ranks(place)
    ranks.start(worker.main)
    ending.exit_now(ranks.wait())


@dataclass(frozen=True)
class Place:
    """Where this pod's ranks stand among all."""

    first: int
    local_size: int
    size: int
    address: str
    port: str

    @classmethod
    def from_environment(cls) -> "Place":
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


class Ranks:
    """The training processes of this pod, and the one loop, in one thread, that attends to them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._alive: dict[int, int] = {}
        """Local rank by process id."""
        self._hearts = Hearts(place.local_size)
        self._stacks = Stacks(self._hearts.stacks)
        self._watch = Watch(lambda local_rank: process_state(self._processes()[local_rank]) == "T")
        self._code = 0
        self._told: signal.Signals | None = None
        """The signal that this pod was told to stop by."""
        self._deadline = math.inf
        """When the ranks that are left are killed; once they are, when they are no longer waited for."""
        self._killed = False

    def start(self, run: Callable[[], None]) -> None:
        """Fork the ranks; in each of them `run` is called, and the process ends when it returns."""
        ending.hold_child_signals()
        launcher = os.getpid()
        for local_rank in range(self._place.local_size):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                os.environ.update(self._place.environment(local_rank))
                heartbeat.take(self._hearts.of(local_rank))
                _be_rank(run, launcher)
            self._alive[pid] = local_rank

    def wait(self) -> int:
        """Attend to the ranks until all have ended. Returns the pod's exit code.

        After a failure of the first, or a hang, the others are ended; when this pod is told to stop, they are, too.
        """
        while self._alive and not (self._killed and time.monotonic() > self._deadline):
            received = ending.next_signal(min(LOOK_SECONDS, self._deadline - time.monotonic()))
            self._reap()
            if received in ending.STOP_SIGNALS and self._told is None:
                self._stop(received)
            elif self._deadline == math.inf:
                self._look()
            elif time.monotonic() > self._deadline and not self._killed:
                self._kill()
        self._copy_stacks()
        if self._told is not None and self._code == 0:
            return _told_to_stop(self._told)
        return self._code

    def _reap(self) -> None:
        """See which processes have ended. After the first failure of a rank the others are told to, without saving."""
        while self._alive and (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            local_rank = self._alive.pop(ended[0], None)
            code = os.waitstatus_to_exitcode(ended[1])
            # None: an orphan, inherited by the first process of a container
            if local_rank is None or code == 0 or self._deadline < math.inf:
                continue
            self._code = _explain(self._place.first + local_rank, code)
            self._signal(signal.SIGINT)
            self._deadline = time.monotonic() + END_SECONDS

    def _stop(self, received: signal.Signals) -> None:
        """Pass a signal on to the ranks, and give them time to save and to say their last word."""
        self._told = received
        self._signal(received)
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + float(os.environ.get(contract.ENV_GRACE, STOP_SECONDS)) - END_SECONDS

    def _look(self) -> None:
        """See whether the ranks hang. If so, say where they are, and end them."""
        self._copy_stacks()
        beats = {local_rank: self._hearts.read(local_rank) for local_rank in self._alive.values()}
        if not self._watch.look(beats):
            return
        found = time.monotonic()
        processes = self._processes()
        states = {local_rank: process_state(process) for local_rank, process in processes.items()}
        answers = self._stacks.ask(processes)
        witnesses = [
            Witness(self._place.first + r, beat, self._watch.age(r), answers[r], states[r]) for r, beat in beats.items()
        ]
        for witness in witnesses:
            print(f"{witness}\n{witness.answer}", file=sys.stderr)
        word = last_word(witnesses)
        print(f"hang: {word.message}", file=sys.stderr, flush=True)
        ending.leave_word(word)
        # Ranks in other pods would else lose a peer, and end, before their launchers have asked them where they are.
        time.sleep(max(0.0, found + ANSWER_SECONDS - time.monotonic()))
        self._code = contract.EXIT_HANG
        self._kill()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._killed = True
        self._deadline = time.monotonic() + REAP_SECONDS

    def _copy_stacks(self) -> None:
        """What ranks say when somebody else asks them (kill -USR1) belongs to the log as well."""
        for local_rank in range(self._place.local_size):
            if news := self._stacks.news(local_rank):
                print(f"rank {self._place.first + local_rank} is here:\n{news}", file=sys.stderr, flush=True)

    def _processes(self) -> dict[int, int]:
        """Process ids by local rank."""
        return {local_rank: pid for pid, local_rank in self._alive.items()}

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._alive:  # not reaped yet, so the number is still that of the rank
            os.kill(pid, number)


def _be_rank(run: Callable[[], None], launcher: int) -> NoReturn:
    """The whole life of a forked process: nothing of the launcher's may run in it."""
    try:
        from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

        _prctl_pr_set_pdeathsig(signal.SIGKILL)  # a rank must not outlive its launcher
        if os.getppid() != launcher:
            os._exit(1)
        ending.release_child_signals()
        run()
    except BaseException:  # noqa: BLE001 (SystemExit, too, ends here)
        traceback.print_exc()
        ending.exit_now(1)
    ending.exit_now(0)


def _told_to_stop(received: signal.Signals) -> int:
    """The pod's exit code; its last word, too, if no rank has left one."""
    ending.leave_word(TerminationMessage(exception=received.name, message="told to stop before the training began"))
    return 128 + received


def _explain(rank: int, code: int) -> int:
    """The pod's exit code for that of a rank. One that a signal killed could leave no last word, so this does."""
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    hint = "; the usual reason is its memory limit" if -code == signal.SIGKILL else ""
    message = f"rank {rank} was killed by {name}{hint}"
    ending.leave_word(TerminationMessage(rank=rank, exception=name, message=message))
    return 128 - code


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


@contextmanager
def _importing() -> Iterator[None]:
    """Import without garbage collection, and never again look at what was imported; this saves a tenth."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _set_threads(processes: int) -> None:
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
