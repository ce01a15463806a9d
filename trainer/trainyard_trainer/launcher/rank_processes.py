"""The training processes of one pod, in one attempt: forked and watched by the launcher. Free of torch."""

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from trainyard.protocol import constants
from trainyard.protocol.launcher import (
    REAP_SECONDS,
    STOP_SIGNALS,
    Launcher,
    end_children,
    next_signal,
    release_own_signals,
)
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.launcher.hang_detection import (
    ANSWER_SECONDS,
    CHECK_SECONDS,
    HangDetector,
    RankDiagnostics,
    StackTraces,
    hang_report,
    process_state,
)
from trainyard_trainer.launcher.pod_environment import PodEnvironment, oom_kill_count
from trainyard_trainer.runtime import heartbeat, process_exit
from trainyard_trainer.runtime.heartbeat import HeartbeatTable

STOP_SECONDS = 10.0
"""Time that the ranks get to end when this pod is told to stop, unless the operator gives them more."""
END_SECONDS = 2.0
"""Of that time, what is left to the launcher; and the time that ranks get to end after another one has failed."""


class RankProcesses:
    """The training processes of this pod, and the one loop, in one thread, that attends to them."""

    def __init__(self, place: PodEnvironment, launcher: Launcher) -> None:
        self._place = place
        self._launcher = launcher
        self._alive: dict[int, int] = {}
        """Local rank by process id."""
        self._hearts = HeartbeatTable(place.local_size)
        self._stacks = StackTraces(self._hearts.stacks)
        self._watch = HangDetector(lambda local_rank: process_state(self._processes()[local_rank]) == "T")
        self._code = 0
        self._told: signal.Signals | None = None
        """The signal that this pod was told to stop by."""
        self._deadline = math.inf
        """When the ranks that are left are killed; once they are, when they are no longer waited for."""
        self._killed = False
        self._memory_kills = oom_kill_count()
        self._stepped = False

    def start(self, run: Callable[[], None]) -> None:
        """Fork the ranks; in each of them `run` is called, and the process ends when it returns."""
        self._launcher.begin()
        launcher = os.getpid()
        for local_rank in range(self._place.local_size):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                os.environ.update(self._place.environment(local_rank))
                heartbeat.install(self._hearts.of(local_rank))
                self._launcher.leave_port()
                _be_rank(run, launcher)
            self._alive[pid] = local_rank

    def wait(self) -> int:
        """Attend to the ranks until all have ended. Returns the pod's exit code.

        After a failure of the first, or a hang, the others are ended; when this pod is told to stop, they are, too;
        and they are killed if another attempt is to begin.
        """
        while self._alive and not (self._killed and time.monotonic() > self._deadline):
            received = next_signal(min(CHECK_SECONDS, self._deadline - time.monotonic()))
            self._reap()
            if self._launcher.attend() and not self._killed:
                self._kill()
            elif received in STOP_SIGNALS and self._told is None:
                self._stop(received)
            elif self._deadline == math.inf:
                self._look()
            elif time.monotonic() > self._deadline and not self._killed:
                self._kill()
        self._copy_stacks()
        self._stepped = any(self._hearts.read(rank).done > 0 for rank in range(self._place.local_size))
        self._hearts.close()
        if self._told is not None and self._code == 0:
            return told_to_stop(self._told)
        return self._code

    def can_restart_in_place(self) -> bool:
        """Whether another attempt can begin in this pod, now that this one has ended.

        Not if the pod was told to stop, or if something in it cannot be killed. And unless that has been ordered
        already, not if no step was ever made: new pods may do better then.
        """
        helps = self._stepped and self._code not in (0, constants.EXIT_INVALID_CONFIG)
        return self._told is None and (helps or self._launcher.ordered) and end_children()

    def _reap(self) -> None:
        """See which processes have ended. After the first failure of a rank the others are told to, without saving."""
        while self._alive and (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            local_rank = self._alive.pop(ended[0], None)
            code = os.waitstatus_to_exitcode(ended[1])
            # None: an orphan, inherited by the first process of a container
            if local_rank is None or code == 0 or self._deadline < math.inf:
                continue
            self._code = _explain(self._place.first + local_rank, code, oom_kill_count() > self._memory_kills)
            self._signal(signal.SIGINT)
            self._deadline = time.monotonic() + END_SECONDS

    def _stop(self, received: signal.Signals) -> None:
        """Pass a signal on to the ranks, and give them time to save and to say their last word."""
        self._told = received
        self._signal(received)
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + float(os.environ.get(constants.ENV_GRACE, STOP_SECONDS)) - END_SECONDS

    def _look(self) -> None:
        """See whether the ranks hang. If so, say where they are, and end them."""
        self._copy_stacks()
        beats = {local_rank: self._hearts.read(local_rank) for local_rank in self._alive.values()}
        if not self._watch.check(beats):
            return
        found = time.monotonic()
        processes = self._processes()
        states = {local_rank: process_state(process) for local_rank, process in processes.items()}
        answers = self._stacks.ask(processes)
        witnesses = [
            RankDiagnostics(self._place.first + r, beat, self._watch.age(r), answers[r], states[r])
            for r, beat in beats.items()
        ]
        for witness in witnesses:
            print(f"{witness}\n{witness.answer}", file=sys.stderr)
        word = hang_report(witnesses)
        print(f"hang: {word.message}", file=sys.stderr, flush=True)
        process_exit.write_termination_message(word)
        # Ranks in other pods would else lose a peer, and end, before their launchers have asked them where they are.
        time.sleep(max(0.0, found + ANSWER_SECONDS - time.monotonic()))
        self._code = constants.EXIT_HANG
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
        release_own_signals()
        run()
    except BaseException:  # noqa: BLE001 (SystemExit, too, ends here)
        traceback.print_exc()
        process_exit.exit_now(1)
    process_exit.exit_now(0)


def told_to_stop(received: signal.Signals) -> int:
    """The pod's exit code; its last word, too, if no rank has left one."""
    process_exit.write_termination_message(
        TerminationMessage(exception=received.name, message="told to stop before the training began")
    )
    return 128 + received


def _explain(rank: int, code: int, starved: bool) -> int:
    """The pod's exit code for that of a rank. One that a signal killed could leave no last word, so this does.

    `starved`: the kernel has killed a process of this pod for want of memory since the ranks were started.
    """
    if code >= 0:
        return code
    name, hint = signal.Signals(-code).name, ""
    exception = name
    if -code == signal.SIGKILL:
        hint = " for want of memory" if starved else "; the usual reason is a lack of memory"
        exception = "OOMKilled" if starved else name  # as Kubernetes has it where the whole container is killed
    message = f"rank {rank} was killed by {name}{hint}"
    process_exit.write_termination_message(TerminationMessage(rank=rank, exception=exception, message=message))
    return 128 - code
