"""The launcher: the first process of a worker pod, which restarts the ranks inside the pod on request of the operator.

If processes of a group failed while its pods are alive, the group can start its next attempt inside them: nothing is
scheduled, pulled or imported again. Pods hold no credentials for the cluster, so the operator connects to the launcher
(see `launcher_protocol` for the HTTP interface). The kubelet learns from the readiness probe that an attempt has ended.
The operator sees that the pod is not ready, asks the launcher how the attempt ended, and then either requests another
attempt or deletes the pod. A launcher that receives no request for a while exits with the exit code of its attempt.

The launcher of the built-in trainer uses the classes of this module. For a user's own program (`restartPolicy.inPlace`)
the module is run as a program: it starts the command given by its arguments, once per attempt, and copies its output.
If the command fails without a termination message, the end of its output becomes one. The operator mounts this file and
the other `constants.LAUNCHER_FILES` into the user's image, so they need only the standard library of Python 3.8.

The launcher has a single thread. It alternates between checking its processes and serving its port; the kernel sends
SIGIO when a connection has input, which ends the wait in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

if __package__:
    from trainyard.protocol import launcher_protocol as protocol
    from trainyard.protocol.launcher_dns import POLL_SECONDS, can_look_up
    from trainyard.protocol.launcher_output import STDERR, STDOUT, OutputCopy
    from trainyard.protocol.launcher_port import Port, Response
    from trainyard.protocol.log_tail import excerpt
else:  # run as a program: the operator mounts the files into one folder of the user's image
    import launcher_protocol as protocol  # type: ignore[import-not-found, no-redef]
    from launcher_dns import POLL_SECONDS, can_look_up  # type: ignore[import-not-found, no-redef]
    from launcher_output import STDERR, STDOUT, OutputCopy  # type: ignore[import-not-found, no-redef]
    from launcher_port import Port, Response  # type: ignore[import-not-found, no-redef]
    from log_tail import excerpt  # type: ignore[import-not-found, no-redef]

REQUEST_TIMEOUT_SECONDS = 60.0
"""Time that a launcher waits for a request after its attempt has failed."""
MIN_ATTEMPT_SECONDS = 30.0
"""Shortest attempt of a user's own program after which the pod waits for a request. A program that fails sooner may
never have begun to train; its pod exits at once, so that the next attempt gets new pods."""
ADDRESS_SECONDS = 600.0
"""Time that a launcher waits for the address of worker 0, whose pod may wait for a node, before it starts the attempt
all the same."""
REAP_SECONDS = 1.0
"""Time within which a killed process is gone, unless it is stuck in the kernel."""
MAX_MESSAGE_BYTES = 4096
"""Largest termination message that the kubelet keeps."""
PORTS = 100
"""Number of rendezvous ports that a user's own program uses in turn, one per attempt in a pod, so that processes of an
earlier attempt cannot meet those of a later one."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals by which the kubelet or a user asks the pod to stop."""
_LAUNCHER_SIGNALS = (signal.SIGCHLD, signal.SIGIO)
"""Signals that wake the launcher: a child has ended, or a connection has input."""

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class Launcher:
    """The current attempt of a pod, and the operator's requests for what comes next."""

    def __init__(self, attempt: int, port: Port | None = None) -> None:
        """Begin with attempt number `attempt`. Without a port no requests arrive, and the pod has this attempt only."""
        self.attempt = attempt
        """Number of the attempt that runs or, once a restart was requested, of the next one."""
        self._port = port
        self._exit_info: dict[str, str | int] | None = None
        self._probed = False
        self.restart_requested = False
        """Whether the operator requested another attempt in this pod. Processes of the attempt before must be
        killed."""
        self._released = False

    @classmethod
    def from_environment(cls) -> Launcher:
        """Return a launcher with a port, if the operator gave this pod a token; else one without.

        The token is removed from the environment, so that ranks and their children do not inherit it.
        """
        attempt = protocol.attempt_number()
        token = os.environ.pop(protocol.ENV_TOKEN, "")
        if not token:
            return cls(attempt)
        number = protocol.port_number(protocol.ENV_LAUNCHER_PORT, protocol.LAUNCHER_PORT)
        try:
            return cls(attempt, Port(token, number))
        except OSError as error:
            message = f"no restart in place: the launcher's port {number} cannot be opened: {error.strerror}"
            print(message, file=sys.stderr, flush=True)
            return cls(attempt)

    def await_address(self, name: str) -> signal.Signals | None:
        """Wait until the address of worker 0 can be looked up, and answer requests meanwhile.

        A program need not retry the look-up then, and does not find an answer that came too early in a cache.

        Return the signal by which the pod was told to stop meanwhile, if any.
        """
        deadline = time.monotonic() + ADDRESS_SECONDS
        while not (self.poll_requests() or can_look_up(name) or time.monotonic() > deadline):
            received = wait_for_signal(POLL_SECONDS)
            if received in STOP_SIGNALS:
                return received
        return None

    def begin_attempt(self) -> None:
        """Prepare an attempt, just before its processes are started."""
        os.environ[protocol.ENV_ATTEMPT] = str(self.attempt)
        self._exit_info, self._probed, self.restart_requested = None, False, False

    def close_port(self) -> None:
        """Close the port in a forked process, which must not serve it."""
        if self._port is not None:
            self._port.close()

    def poll_requests(self) -> bool:
        """Answer the requests that have arrived. Return whether another attempt was requested."""
        if self._port is not None:
            self._port.poll(self._answer)
        return self.restart_requested

    def wait_for_request(self, exit_code: int) -> bool:
        """Report that the attempt has ended with `exit_code`, and wait for a request of the operator.

        Return whether another attempt was requested; if not, the pod should exit.
        """
        # The operator notices the end only as a change from ready to not ready: without one probe it never would.
        if not self._probed:
            return False
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._exit_info = {"exitCode": exit_code, "message": read_termination_message(), "at": now}
        deadline = time.monotonic() + REQUEST_TIMEOUT_SECONDS
        while not self.poll_requests() and not self._released and time.monotonic() < deadline:
            if wait_for_signal(1.0) in STOP_SIGNALS:
                return False
        return self.restart_requested

    def _answer(self, method: str, path: str, trusted: bool) -> Response:
        """Return the response to a request. `trusted`: it has the job's token."""
        # The kubelet's probe: ready while the attempt runs. It has no token.
        if (method, path) == ("GET", protocol.READY_PATH):
            if self._exit_info is not None or self.restart_requested:
                return HTTPStatus.SERVICE_UNAVAILABLE, f"attempt {self.attempt} has ended\n"
            self._probed = True
            return HTTPStatus.OK, f"attempt {self.attempt} runs\n"
        if not trusted:
            return HTTPStatus.UNAUTHORIZED, "the job's token is required as Authorization: Bearer TOKEN\n"
        if (method, path) == ("GET", protocol.STATE_PATH):
            return HTTPStatus.OK, self._state()
        # Release: exit. It is refused while the attempt runs.
        if (method, path) == ("POST", protocol.RELEASE_PATH):
            self._released = self._exit_info is not None
            return (HTTPStatus.ACCEPTED if self._released else HTTPStatus.CONFLICT), self._state()
        # Restart: begin attempt N.
        number = path[len(protocol.ATTEMPT_PATH) :]
        if method == "POST" and path.startswith(protocol.ATTEMPT_PATH) and number.isdecimal():
            return self._request_restart(int(number))
        return HTTPStatus.NOT_FOUND, f"there is no {method} {path}\n"

    def _request_restart(self, attempt: int) -> Response:
        """Accept or refuse to begin an attempt."""
        # An older attempt, or one that has already ended here: the operator's view is out of date.
        if attempt < self.attempt or (attempt == self.attempt and self._exit_info is not None):
            return HTTPStatus.CONFLICT, self._state()
        # A newer attempt. A repeated request for the current one changes nothing.
        if attempt > self.attempt:
            self.attempt, self._exit_info, self.restart_requested = attempt, None, True
        return HTTPStatus.ACCEPTED, self._state()

    def _state(self) -> str:
        """Return the state of the pod as JSON (`trainyard.protocol.launcher_state.PodState`)."""
        exit_info = {} if self._exit_info is None else {"exitInfo": self._exit_info}
        return json.dumps({"attempt": self.attempt, **exit_info})


# --- processes ------------------------------------------------------------------------------------------------


def block_signals() -> None:
    """Block the signals that `wait_for_signal` consumes. Forked and started processes inherit the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, *_LAUNCHER_SIGNALS))


def unblock_launcher_signals() -> None:
    """Unblock the launcher's own signals in a forked process; the stop signals stay blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LAUNCHER_SIGNALS)


def wait_for_signal(seconds: float) -> signal.Signals | None:
    """Return the next blocked signal, pending or arriving within a number of seconds; None if none arrives."""
    info = signal.sigtimedwait((*STOP_SIGNALS, *_LAUNCHER_SIGNALS), max(0.0, seconds))
    return None if info is None else signal.Signals(info.si_signo)


def become_subreaper() -> None:
    """Become the parent of orphaned descendants, as process 1 of a container is anyway (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_children() -> bool:
    """Kill all processes that an attempt has left behind. Return whether they are gone.

    A process that writes a checkpoint, for example, outlives its rank and must not run beside the next attempt.
    """
    deadline = time.monotonic() + REAP_SECONDS
    while True:
        children = [pid for pid, parent in _processes() if parent == os.getpid()]
        if not children:
            return True
        if time.monotonic() > deadline:
            return False
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)


def _processes() -> Iterator[tuple[int, int]]:
    """Yield all processes of the machine or container: process id and parent id."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def read_termination_message() -> str:
    """Return the current termination message of the pod; empty if there is none."""
    try:
        return termination_message_path().read_text("utf-8", "replace")
    except OSError:
        return ""


def clear_termination_message() -> None:
    """Empty the termination message of the pod before another attempt begins."""
    # In place and never by rename: in a pod the file is a mount point.
    if read_termination_message():
        termination_message_path().write_text("")


def termination_message_path() -> Path:
    """Return the path of the container's termination message, which the kubelet reads."""
    return Path(os.environ.get(protocol.ENV_TERMINATION_LOG) or protocol.TERMINATION_LOG)


# --- a user's own program -------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command given by the arguments, once per attempt, and exit with its exit code."""
    block_signals()
    become_subreaper()
    launcher = Launcher.from_environment()
    first = launcher.attempt
    while True:
        launcher.begin_attempt()
        if (received := launcher.await_address(os.environ.get("MASTER_ADDR") or "127.0.0.1")) is not None:
            sys.exit(128 + received)
        # Another attempt was requested meanwhile.
        if launcher.restart_requested:
            continue
        started = time.monotonic()
        output = [OutputCopy(STDOUT), OutputCopy(STDERR)]
        code, stopped = _run(launcher, _environment(launcher.attempt - first), output)
        none_left = kill_children()
        for copy in output:
            copy.close()
        # The pod was told to stop, or a process cannot be killed: no other attempt may run in this pod.
        if stopped or not none_left:
            sys.exit(code)
        if code != 0:
            _explain_failure(output)
        # The attempt has ended by itself: another one helps only after a failure of a program that had begun to train.
        if not launcher.restart_requested:
            restartable = code != 0 and time.monotonic() - started >= MIN_ATTEMPT_SECONDS
            if not restartable or not launcher.wait_for_request(code):
                sys.exit(code)
        clear_termination_message()


def _environment(restarts: int) -> dict[str, str]:
    """Return the environment of the command after a number of restarts. Each attempt has its own rendezvous port."""
    environment = dict(os.environ)
    for name in ("MASTER_PORT", "PET_MASTER_PORT"):
        if name in environment:
            environment[name] = str(int(environment[name]) + restarts % PORTS)
    return environment


def _unblock_all_signals() -> None:
    """Give a child the signal mask that it would have without a launcher."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _explain_failure(output: list[OutputCopy]) -> None:
    """Leave the end of the output as the termination message, unless the program has written one about its failure."""
    try:
        written = json.loads(read_termination_message())
    except (ValueError, RecursionError):
        written = read_termination_message()
    # The final figures of `trainyard.reporter` are no explanation.
    is_progress = isinstance(written, dict) and "progress" in written and not written.get("exception")
    text = "\n".join(copy.text for copy in output)
    if text.strip() and (is_progress or not written):
        with contextlib.suppress(OSError):
            termination_message_path().write_bytes(excerpt(text, MAX_MESSAGE_BYTES).encode())


def _run(launcher: Launcher, environment: dict[str, str], output: list[OutputCopy]) -> tuple[int, bool]:
    """Run one attempt. Return its exit code as a shell would, and whether the pod was told to stop.

    The attempt also ends, with its processes still alive, when the operator requests another one.
    """
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            env=environment,
            stdout=output[0].write_end,
            stderr=output[1].write_end,
            start_new_session=True,
            preexec_fn=_unblock_all_signals,  # noqa: PLW1509 (this process has no other thread)
        )
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 127, False  # as a shell: command not found
    finally:
        for copy in output:
            copy.close_write_end()
    stopped = False
    while child.poll() is None and not launcher.poll_requests():
        received = wait_for_signal(1.0)
        for copy in output:
            copy.copy()
        if received in STOP_SIGNALS:
            stopped = True
            child.send_signal(received)
    code = child.poll() or 0
    return (128 - code if code < 0 else code), stopped


if __name__ == "__main__":
    main()
