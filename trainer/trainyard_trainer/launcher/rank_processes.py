"""Starts the training processes of one pod in one attempt, and watches them. Free of torch."""

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from trainyard.protocol import constants
from trainyard.protocol.launcher import (
    REAP_SECONDS,
    STOP_SIGNALS,
    Launcher,
    kill_children,
    unblock_launcher_signals,
    wait_for_signal,
)
from trainyard.protocol.launcher_output import STDERR, OutputCopy
from trainyard.protocol.log_tail import find_failure
from trainyard.protocol.termination import TerminationMessage
from trainyard_trainer.launcher.flight_recorder import DUMP_SECONDS, FlightRecorder
from trainyard_trainer.launcher.hang_detection import (
    CHECK_SECONDS,
    STACK_SECONDS,
    HangDetector,
    RankDiagnostics,
    StackTraces,
    hang_report,
    process_state,
)
from trainyard_trainer.launcher.pod_environment import PodEnvironment, oom_kill_count
from trainyard_trainer.runtime import heartbeat, process_exit
from trainyard_trainer.runtime.heartbeat import Heartbeat, HeartbeatTable


class RankProcesses:
    """The training processes of this pod in one attempt, and the single-threaded loop that watches them."""

    def __init__(self, environment: PodEnvironment, launcher: Launcher) -> None:
        self._environment = environment
        self._launcher = launcher
        self._alive: dict[int, int] = {}
        """Local rank by process id."""
        self._output: dict[int, OutputCopy] = {}
        """Standard error of each rank, by local rank: NCCL ends a process without a word to Python."""
        self._heartbeats = HeartbeatTable(environment.local_size)
        self._stacks = StackTraces(self._heartbeats.stacks)
        self._detector = HangDetector(lambda local_rank: process_state(self._processes()[local_rank]) == "T")
        self._recorder = FlightRecorder.of_attempt(launcher.attempt)
        self._code = 0
        self._stop_signal: signal.Signals | None = None
        """Signal that told this pod to stop."""
        self._deadline = math.inf
        """When the remaining ranks are killed; after that, when the launcher no longer waits for them."""
        self._killed = False
        self._oom_kills = oom_kill_count()
        self._stepped = False
        """Whether a rank has done a step in this attempt."""

    def start(self, run: Callable[[], None]) -> None:
        """Fork the ranks. Each of them calls `run`, and ends when it returns."""
        self._launcher.begin_attempt()
        launcher = os.getpid()
        for local_rank in range(self._environment.local_size):
            sys.stdout.flush()
            output = OutputCopy(STDERR)
            pid = os.fork()
            if pid == 0:
                output.divert()
                os.environ.update(self._environment.rank_environment(local_rank))
                os.environ.update(self._recorder.variables)
                heartbeat.install(self._heartbeats.writer(local_rank))
                self._launcher.close_port()
                _run_rank(run, launcher)
            output.close_write_end()
            self._alive[pid] = local_rank
            self._output[local_rank] = output

    def wait(self) -> int:
        """Watch the ranks until all have ended, and return the pod's exit code.

        The remaining ranks are ended after the first failure or a hang, and when this pod is told to stop. They are
        killed when a restart is requested.
        """
        while self._alive and not (self._killed and time.monotonic() > self._deadline):
            received = wait_for_signal(min(CHECK_SECONDS, self._deadline - time.monotonic()))
            for output in self._output.values():
                output.copy()
            self._reap()
            # The operator has requested another attempt.
            if self._launcher.poll_requests() and not self._killed:
                self._kill()
            # This pod is told to stop.
            elif received in STOP_SIGNALS and self._stop_signal is None:
                self._stop(received)
            # Nothing has happened: check for a hang.
            elif self._deadline == math.inf:
                self._check_for_hang()
            # Ranks have not ended in time.
            elif time.monotonic() > self._deadline and not self._killed:
                self._kill()
        for output in self._output.values():
            output.close()
        self._log_stacks()
        local_ranks = range(self._environment.local_size)
        self._stepped = any(self._heartbeats.read(rank).attempt_steps > 0 for rank in local_ranks)
        self._heartbeats.close()
        if self._code != 0:
            self._recorder.keep()
        self._recorder.close()
        if self._stop_signal is not None and self._code == 0:
            return stopped_before_training(self._stop_signal)
        return self._code

    def can_restart_in_place(self) -> bool:
        """Return whether another attempt can begin in this pod, now that all ranks have ended."""
        # A pod that was told to stop ends.
        if self._stop_signal is not None:
            return False
        # Unless a restart is requested already, new pods may do better if no step was done, or the configuration fails.
        promising = self._stepped and self._code not in (0, constants.EXIT_INVALID_CONFIG)
        if not (promising or self._launcher.restart_requested):
            return False
        # Processes that cannot be killed would disturb the next attempt.
        return kill_children()

    def _reap(self) -> None:
        """Collect exit codes. After the first failure the other ranks are told to end, without saving."""
        while self._alive and (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            local_rank = self._alive.pop(ended[0], None)
            code = os.waitstatus_to_exitcode(ended[1])
            # None: an orphan that the first process of a container has inherited.
            if local_rank is None or code == 0 or self._deadline < math.inf:
                continue
            oom_killed = oom_kill_count() > self._oom_kills
            self._output[local_rank].copy()
            rank, stderr = self._environment.first_rank + local_rank, self._output[local_rank].text
            self._code = _explain_exit(rank, code, oom_killed, stderr)
            self._signal(signal.SIGINT)
            self._deadline = time.monotonic() + process_exit.LAUNCHER_SECONDS

    def _stop(self, received: signal.Signals) -> None:
        """Forward a signal to the ranks, and give them time to save and to write their termination message."""
        self._stop_signal = received
        self._signal(received)
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + process_exit.grace_seconds()

    def _check_for_hang(self) -> None:
        """If the ranks hang, report the state of each of them, and kill them.

        This comes before NCCL's own timeout (`runtime.world.collective_timeout`), which would abort a rank that only
        waits for another one.
        """
        self._log_stacks()
        heartbeats = {local_rank: self._heartbeats.read(local_rank) for local_rank in self._alive.values()}
        if not self._detector.check(heartbeats):
            return
        detected = time.monotonic()
        recording = self._recorder.request(self._environment.first_rank + local_rank for local_rank in heartbeats)
        report = hang_report(self._diagnose(heartbeats))
        print(f"hang: {report.message}", file=sys.stderr, flush=True)
        process_exit.write_termination_message(report)
        # With NCCL every pod waits as long as the slowest file may take, so that no rank loses a peer while it writes.
        if recording:
            self._recorder.wait(recording, detected + DUMP_SECONDS)
            time.sleep(max(0.0, detected + DUMP_SECONDS - time.monotonic()))
        # Ranks of other pods lose a peer when these are killed, and end; their launchers must get their stacks before.
        time.sleep(max(0.0, detected + STACK_SECONDS - time.monotonic()))
        self._code = constants.EXIT_HANG
        self._kill()

    def _diagnose(self, heartbeats: Mapping[int, Heartbeat]) -> list[RankDiagnostics]:
        """Ask each local rank for its stacks, and print them to the log."""
        now, processes = time.monotonic(), self._processes()
        states = {local_rank: process_state(process) for local_rank, process in processes.items()}
        stacks = self._stacks.collect(processes)
        ranks = [
            RankDiagnostics(
                self._environment.first_rank + local_rank,
                last,
                self._detector.age(local_rank),
                stacks[local_rank],
                states[local_rank],
                now - last.device_time,
            )
            for local_rank, last in heartbeats.items()
        ]
        for rank in ranks:
            print(f"{rank}\n{rank.stacks}", file=sys.stderr)
        return ranks

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._killed = True
        self._deadline = time.monotonic() + REAP_SECONDS

    def _log_stacks(self) -> None:
        """Copy stacks that ranks have printed on request (kill -USR1) to the log."""
        for local_rank in range(self._environment.local_size):
            if stacks := self._stacks.read_new(local_rank):
                rank = self._environment.first_rank + local_rank
                print(f"stacks of rank {rank}:\n{stacks}", file=sys.stderr, flush=True)

    def _processes(self) -> dict[int, int]:
        """Return the process ids of the living ranks, by local rank."""
        return {local_rank: pid for pid, local_rank in self._alive.items()}

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._alive:  # not reaped yet, so the process id still belongs to the rank
            os.kill(pid, number)


def _run_rank(run: Callable[[], None], launcher: int) -> NoReturn:
    """Run a forked process from start to end: it must never return into the launcher's code."""
    try:
        from trainyard_trainer.runtime.torch_internals import die_with_parent

        die_with_parent(signal.SIGKILL)  # a rank must not outlive its launcher
        if os.getppid() != launcher:
            os._exit(1)
        unblock_launcher_signals()
        run()
    except BaseException:  # noqa: BLE001 (SystemExit, too, ends here)
        traceback.print_exc()
        process_exit.exit_now(1)
    process_exit.exit_now(0)


def stopped_before_training(received: signal.Signals) -> int:
    """Write the termination message of a pod that was told to stop, unless a rank has done so; return its exit code."""
    process_exit.write_termination_message(
        TerminationMessage(exception=received.name, message="told to stop before the training began")
    )
    return 128 + received


def _explain_exit(rank: int, code: int, oom_killed: bool, stderr: str) -> int:
    """Return the pod's exit code for that of a rank, and write the termination message of a rank killed by a signal.

    Args:
        rank: the rank.
        code: its exit code; negative: the number of the signal.
        oom_killed: whether the OOM killer has killed a process of this pod since the ranks were started.
        stderr: the end of what it has written to standard error.
    """
    if code >= 0:
        return code
    process_exit.write_termination_message(explain_signal(rank, signal.Signals(-code), oom_killed, stderr))
    return 128 - code


def explain_signal(rank: int, number: signal.Signals, oom_killed: bool, stderr: str) -> TerminationMessage:
    """Return the termination message of a rank that was killed by a signal; for the arguments see `_explain_exit`."""
    name, peer_lost = number.name, False
    # The exception is "OOMKilled", as Kubernetes has it where the entire container is killed.
    if number == signal.SIGKILL and oom_killed:
        exception, message = "OOMKilled", f"rank {rank} was killed by the OOM killer ({name})"
    elif number == signal.SIGKILL:
        exception, message = name, f"rank {rank} was killed by {name}; the usual reason is a lack of memory"
    # A process aborts itself after an error in C++; NCCL's watchdog does so when another rank is gone.
    elif number == signal.SIGABRT and (failure := find_failure(stderr)).exception is not None:
        exception, message = name, f"rank {rank} was killed by {name}: {failure.message}"
        peer_lost = failure.peer_lost
    else:
        exception, message = name, f"rank {rank} was killed by {name}"
    return TerminationMessage(rank=rank, exception=exception, message=message, peer_lost=peer_lost)
